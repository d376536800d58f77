//! The Kubernetes API of CADDY cache: types, validation rules and the generated CustomResourceDefinitions.
