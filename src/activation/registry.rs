//! The registry: the list of all activations, with their names and parameters.

use std::any::Any;
use std::str::FromStr;

use super::op::{Activation, Evaluation, Gated, MAX_PARAMS, Named, Registered, Signature, sealed};
use crate::blocks::ActivationArgs;
use crate::error::{Error, Result};

/// Passes the list of ops to the macro `$then`. An entry has the name of the op (of its module, its kernel file and the stem
/// of its kernel entries), its type, its parameters with their gradients, and after the `;` its optional parameters.
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

        /// The types of all activations.
        pub mod ops {
            $(pub use super::super::$plain::$Plain;)*
            $(pub use super::super::$gated::$Gated;)*
        }

        /// The names of all activations.
        pub const NAMES: &[&str] = &[$(stringify!($plain),)* $(stringify!($gated),)*];

        /// The signatures of all activations.
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

        /// An activation that is chosen at run time by its name, for example from a configuration file. `FromStr` returns
        /// the op with its default options, or [`Error::UnknownOp`].
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

            /// Returns the op as a [`Gated`] activation.
            ///
            /// # Errors
            /// [`Error::NotGated`] if the op has no gated forms.
            pub fn as_gated(&self) -> Result<&dyn Gated> {
                match self {
                    $(AnyActivation::$Gated(op) => Ok(op),)*
                    op => Err(Error::NotGated { op: op.signature().name }),
                }
            }
        }

        impl FromStr for AnyActivation {
            type Err = Error;

            /// Returns the op of this name with its default options, or [`Error::UnknownOp`].
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

/// Code that runs once for each activation type: see [`for_each`].
pub trait Visitor {
    /// Called once for each op type `A`.
    fn visit<A: Registered>(&mut self);

    /// Called once for each op type `A` that has gated forms. The default does nothing.
    fn visit_gated<A: Gated + Registered>(&mut self) {}
}
