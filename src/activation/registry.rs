//! The registry: every op once, by name.

use std::any::Any;
use std::str::FromStr;

use super::op::{Activation, Evaluation, Gated, MAX_PARAMS, Named, Registered, Signature, sealed};
use crate::blocks::ActivationArgs;
use crate::error::{Error, Result};

/// Hands the list of ops to the macro `$then`. Of each: a word, which is its module, its kernel file and the stem of
/// its entries; its type; its parameters with their gradients, and those that may be left out at the end.
macro_rules! for_each_activation {
    ($then:path) => {
        $then! {
            plain {
                xielu: Xielu(alpha_p dalpha_p, alpha_n dalpha_n; beta dbeta);
            }
            gated {
                xatlu: Xatlu(alpha dalpha;);
                xgelu: Xgelu(alpha dalpha;);
                xsilu: Xsilu(alpha dalpha;);
            }
        }
    };
}
pub(crate) use for_each_activation;

macro_rules! registry {
    (
        plain {$($plain:ident: $Plain:ident($($p:ident $dp:ident),*; $($op:ident $dop:ident),*);)*}
        gated {$($gated:ident: $Gated:ident($($q:ident $dq:ident),*; $($oq:ident $doq:ident),*);)*}
    ) => {
        $(registry!(named $plain: $Plain($($p $dp),*; $($op $dop),*), false);)*
        $(registry!(named $gated: $Gated($($q $dq),*; $($oq $doq),*), true);)*

        /// The ops themselves.
        pub mod ops {
            $(pub use super::super::$plain::$Plain;)*
            $(pub use super::super::$gated::$Gated;)*
        }

        /// The names of all activations.
        pub const NAMES: &[&str] = &[$(stringify!($plain),)* $(stringify!($gated),)*];

        /// What the back ends call them by.
        #[allow(dead_code)] // without `cuda`
        pub(crate) const SIGNATURES: &[Signature] = &[
            $(<super::$plain::$Plain as Named>::SIGNATURE,)*
            $(<super::$gated::$Gated as Named>::SIGNATURE,)*
        ];

        /// Calls `visitor` with each activation, in the order of [`NAMES`].
        pub fn for_each(visitor: &mut impl Visitor) {
            $(visitor.visit::<super::$plain::$Plain>();)*
            $(
                visitor.visit::<super::$gated::$Gated>();
                visitor.visit_gated::<super::$gated::$Gated>();
            )*
        }

        /// An op whose name was a string: a configuration's, or the caller's of another language.
        ///
        /// ```
        /// use xact::{Activation, AnyActivation};
        ///
        /// let op: AnyActivation = "xielu".parse()?;
        /// assert_eq!(op.signature().params, ["alpha_p", "alpha_n", "beta"]);
        /// # Ok::<(), xact::Error>(())
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum AnyActivation {
            $(#[allow(missing_docs)] $Plain(super::$plain::$Plain),)*
            $(#[allow(missing_docs)] $Gated(super::$gated::$Gated),)*
        }

        impl AnyActivation {
            fn inner(&self) -> &dyn Activation {
                match self {
                    $(AnyActivation::$Plain(op) => op,)*
                    $(AnyActivation::$Gated(op) => op,)*
                }
            }

            /// The op as one that can gate.
            ///
            /// # Errors
            /// [`Error::NotGated`] if it has no gated forms.
            pub fn as_gated(&self) -> Result<&dyn Gated> {
                match self {
                    $(AnyActivation::$Gated(op) => Ok(op),)*
                    op => Err(Error::NotGated { op: op.signature().name }),
                }
            }
        }

        impl FromStr for AnyActivation {
            type Err = Error;

            /// The op of that name with its default options.
            fn from_str(name: &str) -> Result<AnyActivation> {
                match name {
                    $(stringify!($plain) => Ok(super::$plain::$Plain::default().into()),)*
                    $(stringify!($gated) => Ok(super::$gated::$Gated::default().into()),)*
                    _ => Err(Error::UnknownOp { name: name.to_owned(), known: NAMES }),
                }
            }
        }
    };
    (named $stem:ident: $Op:ident($($p:ident $dp:ident),*; $($o:ident $do:ident),*), $gated:literal) => {
        impl Named for super::$stem::$Op {
            const SIGNATURE: Signature = Signature::new(
                stringify!($stem),
                &[$(stringify!($p),)* $(stringify!($o),)*],
                &[$(stringify!($dp),)* $(stringify!($do),)*],
                <[&str]>::len(&[$(stringify!($o)),*]),
                $gated,
            );
        }

        impl From<super::$stem::$Op> for AnyActivation {
            fn from(op: super::$stem::$Op) -> AnyActivation {
                AnyActivation::$Op(op)
            }
        }
    };
}

for_each_activation!(registry);

impl sealed::Op for AnyActivation {
    fn concrete(&self) -> &dyn Any {
        self.inner().concrete()
    }

    fn set_options(&self, args: &mut ActivationArgs) {
        self.inner().set_options(args);
    }
}

impl Activation for AnyActivation {
    fn signature(&self) -> &'static Signature {
        self.inner().signature()
    }

    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation {
        self.inner().evaluate(params, x)
    }

    fn chain(&self, params: &[f64]) -> [f64; MAX_PARAMS] {
        self.inner().chain(params)
    }

    fn parameter_ulps(&self) -> f64 {
        self.inner().parameter_ulps()
    }
}

/// Something to do with every activation: see [`for_each`].
pub trait Visitor {
    /// Is called with each op `A`.
    fn visit<A: Registered>(&mut self);

    /// Is called with each op `A` that has gated forms; by default does nothing.
    fn visit_gated<A: Gated + Registered>(&mut self) {}
}
