//! The queue against a model, and the writer against a store that fails.

mod queue;
mod writer;
