//! What the tests and the examples share: choosing a device, running a call on it, inputs.

#![allow(dead_code)] // each user takes a part

pub mod cases;
pub mod check;
pub mod choose;
pub mod files;
pub mod goldfish;
pub mod goldfish_golden;
pub mod inputs;
pub mod loss;
pub mod loss_cases;
pub mod loss_check;
pub mod loss_cpu;
pub mod loss_golden;
pub mod machine;
pub mod plot;
pub mod progress;
pub mod run;
pub mod same;
pub mod strategy;
pub mod table;
pub mod trials;
