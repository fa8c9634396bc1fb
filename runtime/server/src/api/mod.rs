//! The API as types: what requests may say, what answers and errors look like.

pub mod bounds;
pub mod chat;
pub mod completion;
pub mod error;
pub mod number;
pub mod refused;
pub mod request;
pub mod sampling;
pub mod structured;
pub mod tokens;
pub mod tools;

pub use error::ApiError;
pub use request::Request;
