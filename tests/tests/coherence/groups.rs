//! What groups of values promise (C5), as stories.

use caddy_tests::{group_scenarios, world::Subject};

macro_rules! scenarios {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() -> anyhow::Result<()> {
            group_scenarios::$name(&Subject::good())
        }
    )*};
}

scenarios! {
    an_invalidated_tag_kills_its_copies
    a_write_of_a_parent_kills_what_depends_on_it
    a_plain_write_carries_the_tags_of_its_rule
    an_envelope_is_not_written_into
    a_failover_does_not_bring_a_group_back
}
