//! Writes that go to a store, through it and behind it: a real sidecar, a real Redis, a real PostgreSQL.

mod cluster;
mod crashes;
mod examples;
mod existing;
mod outage;
mod replicated;
mod through;
mod world;
mod writes;

use anyhow::Result;
use caddy_tests::{store_scenarios, world::Subject};

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            store_scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    a_deletion_on_its_way_to_the_store_is_not_undone
    a_write_on_its_way_to_the_store_is_read
    a_write_through_is_stored_behind_older_ones
    what_redis_lacks_is_loaded_for_a_condition
}
