//! Tests on the device of this process that are not in the tables of trials: values that users found wrong, cross-entropy's
//! calls, results of other implementations, properties of single ops, the examples.

mod cases;
mod cross_entropy_api;
mod examples;
mod golden_expanded;
mod golden_xielu;
mod xielu;
