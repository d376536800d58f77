//! C1, C3, C4 and C6 on the real sidecar, in front of a real Redis, through a proxy that holds things back.

mod breaker;
mod filters;
mod groups;
mod outages;
mod pods;
mod sessions;
mod writes;

use caddy_tests::{overflow_scenarios, scenarios, world::Subject};

macro_rules! scenarios {
    ($from:ident: $($name:ident)*) => {$(
        #[test]
        fn $name() -> anyhow::Result<()> {
            $from::$name(&Subject::good())
        }
    )*};
}

scenarios! { overflow_scenarios:
    an_overflow_kills_every_copy
    an_overflow_of_a_relay_answers_for_all_that_was_on_it
}

scenarios! { scenarios:
    own_write_is_read_back
    writes_are_seen_by_the_other_worker
    pipelined_read_follows_the_write
    pipelined_read_follows_the_relayed_read
    pipelined_read_follows_the_read_of_many
    pipelined_read_follows_another_read_of_the_key
    pipelined_write_waits_for_the_read
    no_step_back_after_a_relayed_read
    no_step_back_after_a_read_in_a_transaction
    a_write_in_a_transaction_is_read_back
    a_write_while_watching_is_read_back
    a_script_write_is_read_back
    a_script_write_in_a_transaction_is_read_back
    a_flushed_database_is_read_as_it_is
    a_barrier_brings_every_foreign_write
    a_dead_fill_is_not_kept
    a_dead_flight_is_not_joined
    an_old_flight_is_not_joined
    a_loss_kills_every_copy
    tracking_goes_on_after_a_reconnect
    a_half_open_link_keeps_the_bound
    a_late_proof_counts_from_its_sending
    a_copy_expires_with_its_key
    a_replica_proves_nothing
    a_late_write_of_a_lost_relay_is_seen
    no_step_back_behind_an_untold_read_of_another_kind
}
