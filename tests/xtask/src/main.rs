//! The project's commands: test, demo, bench, image, cluster.

fn main() {}
