#![cfg(test)]
#![expect(clippy::print_stderr, reason = "a test tells its seed, its verdict and what it kept")]
//! Every feature against a real Postgres and a real Kafka, in one binary.
//!
//! `deploy/servers -- cargo test --test it` starts both servers, runs this and stops them. A missing server fails the
//! run and says so: a test that skips itself proves nothing.

mod bad_input;
mod barrier;
mod cli;
mod delivery;
mod doorbell;
mod faults;
mod guards;
mod http;
mod memory;
mod naive;
mod pages;
mod partitions;
mod plans;
mod recovery;
mod rejections;
mod security;
mod supervision;
mod support;
