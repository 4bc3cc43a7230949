//! What runs on the device of this process beside the tables of trials: values that users found wrong, cross-entropy's
//! calls, other implementations' results, what is one op's alone, the examples.

mod cases;
mod cross_entropy_api;
mod examples;
mod golden_expanded;
mod golden_xielu;
mod xielu;
