//! The stories of [`lock_scenarios`], on the sidecar as it is; `tests/mutations.rs` has what each of them catches.

use caddy_tests::{lock_scenarios, world::Subject};

#[test]
fn a_lock_counts_from_the_sending_of_its_request() {
    lock_scenarios::a_lock_counts_from_the_sending_of_its_request(&Subject::good()).unwrap();
}

#[test]
fn a_lock_that_was_handed_over_counts_from_its_queueing() {
    lock_scenarios::a_lock_that_was_handed_over_counts_from_its_queueing(&Subject::good()).unwrap();
}

#[test]
fn an_acquisition_that_timed_out_is_handed_nothing() {
    lock_scenarios::an_acquisition_that_timed_out_is_handed_nothing(&Subject::good()).unwrap();
}

#[test]
fn an_epoch_is_agreed_on_before_its_first_token() {
    lock_scenarios::an_epoch_is_agreed_on_before_its_first_token(&Subject::good()).unwrap();
}

#[test]
fn a_lease_that_is_renewed_is_not_taken_over() {
    lock_scenarios::a_lease_that_is_renewed_is_not_taken_over(&Subject::good()).unwrap();
}
