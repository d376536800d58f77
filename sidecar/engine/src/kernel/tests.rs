use super::*;

fn kernel() -> (Kernel, SourceId) {
    let kernel = Kernel::new(&KernelConfig { stripes: 64, max_sources: 2, ..KernelConfig::default() });
    let source = kernel.register(SourceKind::Tracked).unwrap();
    (kernel, source)
}

const KEY: KeyHash = KeyHash::from_raw(7);
const NOW: Moment = Moment::from_millis(10_000);

fn later(millis: u64) -> Moment {
    NOW + Duration::from_millis(millis)
}

#[test]
fn a_tracked_source_serves_nothing_until_something_is_proved() {
    let (kernel, source) = kernel();
    assert_eq!(kernel.currency(source, NOW), Currency::Lapsed);
    let just_booted = Moment::from_nanos(1);
    assert_eq!(kernel.currency(source, just_booted), Currency::Lapsed, "nothing is older than nothing");
    kernel.proved(&kernel.sending(source, NOW), NOW);
    assert_eq!(kernel.currency(source, NOW), Currency::Proven);
}

#[test]
fn currency_goes_from_proven_over_due_to_lapsed() {
    let (kernel, source) = kernel();
    kernel.proved(&kernel.sending(source, NOW), NOW);
    assert_eq!(kernel.currency(source, later(250)), Currency::Proven);
    assert_eq!(kernel.currency(source, later(251)), Currency::DueForProbe);
    assert_eq!(kernel.currency(source, later(1000)), Currency::DueForProbe);
    assert_eq!(kernel.currency(source, later(1001)), Currency::Lapsed);
}

#[test]
fn a_proof_counts_from_its_sending_and_never_goes_back() {
    let (kernel, source) = kernel();
    let (early, late) = (kernel.sending(source, NOW), kernel.sending(source, later(100)));
    kernel.proved(&late, later(900));
    kernel.proved(&early, later(900));
    assert_eq!(kernel.currency(source, later(1100)), Currency::DueForProbe);
    assert_eq!(kernel.currency(source, later(1101)), Currency::Lapsed);
}

#[test]
fn a_proof_of_a_lost_connection_is_ignored() {
    let (kernel, source) = kernel();
    let incarnation = kernel.connected(source);
    let sent = kernel.sending(source, NOW);
    kernel.lost(source, incarnation);
    kernel.connected(source);
    kernel.proved(&sent, NOW);
    assert_eq!(kernel.currency(source, NOW), Currency::Lapsed);
}

#[test]
fn a_late_report_of_an_old_loss_changes_nothing() {
    let (kernel, source) = kernel();
    let old = kernel.connected(source);
    kernel.connected(source);
    let token = kernel.begin_fill(source, KEY, NOW);
    kernel.lost(source, old);
    assert!(kernel.is_current(&token));
}

#[test]
fn a_bump_kills_copies_and_fills_of_its_key_and_no_others() {
    let (kernel, source) = kernel();
    kernel.proved(&kernel.sending(source, NOW), NOW);
    let token = kernel.begin_fill(source, KEY, NOW);
    let other = kernel.begin_fill(source, KeyHash::from_raw(8), NOW);
    assert_eq!(kernel.verdict(&token.basis, Moment::NEVER, NOW), Verdict::Valid(Currency::Proven));
    kernel.bump(KEY);
    assert_eq!(kernel.verdict(&token.basis, Moment::NEVER, NOW), Verdict::Invalidated);
    assert_eq!(kernel.settle(&token, Moment::NEVER), Err(Verdict::Invalidated));
    assert!(kernel.is_current(&other));
}

#[test]
fn an_uncertain_flush_leaves_copies_for_stale_serving_and_an_overwrite_does_not() {
    let (kernel, source) = kernel();
    let before = kernel.begin_fill(source, KEY, NOW).basis;
    kernel.flush(source, FlushCause::Uncertain);
    assert_eq!(kernel.verdict(&before, Moment::NEVER, NOW), Verdict::Flushed);
    kernel.flush(source, FlushCause::Overwritten);
    assert_eq!(kernel.verdict(&before, Moment::NEVER, NOW), Verdict::Invalidated);
    let between = kernel.begin_fill(source, KEY, NOW).basis;
    kernel.flush(source, FlushCause::Uncertain);
    assert_eq!(kernel.verdict(&between, Moment::NEVER, NOW), Verdict::Flushed);
}

#[test]
fn a_lapse_kills_copies_and_proofs_until_the_next_probe() {
    let (kernel, source) = kernel();
    kernel.proved(&kernel.sending(source, NOW), NOW);
    let copy = kernel.begin_fill(source, KEY, NOW).basis;
    kernel.lapse(source);
    assert_eq!(kernel.currency(source, NOW), Currency::Lapsed);
    kernel.proved(&kernel.sending(source, NOW), NOW);
    assert_eq!(kernel.currency(source, NOW), Currency::Proven);
    assert_eq!(kernel.verdict(&copy, Moment::NEVER, NOW), Verdict::Flushed);
}

#[test]
fn a_copy_expires_at_its_deadline_exactly() {
    let (kernel, source) = kernel();
    kernel.proved(&kernel.sending(source, NOW), NOW);
    let copy = kernel.begin_fill(source, KEY, NOW).basis;
    assert_eq!(kernel.verdict(&copy, later(1), NOW), Verdict::Valid(Currency::Proven));
    assert_eq!(kernel.verdict(&copy, later(1), later(1)), Verdict::Expired);
}

#[test]
fn one_probe_per_quarter_of_the_bound() {
    let (kernel, source) = kernel();
    assert!(kernel.claim_probe(source, NOW).is_some());
    assert!(kernel.claim_probe(source, later(249)).is_none());
    assert!(kernel.claim_probe(source, later(250)).is_some());
    kernel.connected(source);
    assert!(kernel.claim_probe(source, later(251)).is_some(), "a new connection may be probed at once");
}

#[test]
fn a_timed_source_needs_no_proof_but_its_copies_live_no_longer_than_the_bound() {
    let (kernel, _) = kernel();
    let timed = kernel.register(SourceKind::Timed).unwrap();
    assert_eq!(kernel.currency(timed, later(1_000_000)), Currency::Proven);
    let token = kernel.begin_fill(timed, KEY, NOW);
    assert_eq!(kernel.settle(&token, Moment::NEVER).unwrap().1, later(1000));
}

#[test]
fn where_nothing_is_announced_a_read_that_lands_ends_the_copies_of_other_reads() {
    let (kernel, tracked) = kernel();
    let timed = kernel.register(SourceKind::Timed).unwrap();
    let older = kernel.settle(&kernel.begin_fill(timed, KEY, NOW), Moment::NEVER).unwrap().0;
    let (mut first, mut second) = (kernel.begin_fill(timed, KEY, NOW), kernel.begin_fill(timed, KEY, NOW));
    kernel.landed(&mut first);
    assert!(kernel.is_current(&first), "what it brings may be kept");
    assert_eq!(kernel.verdict(&older, later(1000), NOW), Verdict::Invalidated);
    kernel.landed(&mut second);
    assert!(!kernel.is_current(&second), "it was sent before the other was shown");
    assert!(!kernel.is_current(&first), "and is newer than it");
    let mut token = kernel.begin_fill(tracked, KEY, NOW);
    let before = token;
    kernel.landed(&mut token);
    assert!(kernel.is_current(&before), "pushes have done it");
}

#[test]
fn a_row_given_back_starts_from_nothing() {
    let (kernel, source) = kernel();
    kernel.register(SourceKind::Local).unwrap();
    assert_eq!(kernel.register(SourceKind::Local), Err(KernelError::RegisterSource { max: 2 }));
    kernel.proved(&kernel.sending(source, NOW), NOW);
    let copy = kernel.begin_fill(source, KEY, NOW).basis;
    kernel.release(source);
    let again = kernel.register(SourceKind::Tracked).unwrap();
    assert_eq!(again, source);
    assert_eq!(kernel.currency(again, NOW), Currency::Lapsed);
    assert_eq!(kernel.verdict(&copy, Moment::NEVER, NOW), Verdict::Invalidated);
}

#[test]
fn a_copy_stays_dead_when_its_source_was_flushed_as_often_as_a_basis_can_count() {
    let (kernel, source) = kernel();
    kernel.proved(&kernel.sending(source, NOW), NOW);
    let copy = kernel.begin_fill(source, KEY, NOW).basis;
    for round in 1..=1_u32 << 16 {
        kernel.flush(source, FlushCause::Uncertain);
        if round.is_power_of_two() {
            assert!(!matches!(kernel.verdict(&copy, Moment::NEVER, NOW), Verdict::Valid(_)), "after {round} flushes");
        }
    }
    let fresh = kernel.begin_fill(source, KEY, NOW).basis;
    assert_eq!(kernel.verdict(&fresh, Moment::NEVER, NOW), Verdict::Valid(Currency::Proven));
    assert!(!kernel.is_void(&fresh));
}

#[test]
fn a_copy_stays_dead_when_its_key_was_written_as_often_as_a_basis_can_count() {
    let (kernel, source) = kernel();
    kernel.proved(&kernel.sending(source, NOW), NOW);
    let stripe = kernel.stamps.stripe(KEY);
    let begin = (1 << 30) - 20;
    kernel.stamps.set(stripe, begin);
    let copy = kernel.begin_fill(source, KEY, NOW).basis;
    for _ in 0..40 {
        kernel.bump(KEY);
    }
    // As if the rest of the way around had been gone, too.
    kernel.stamps.set(stripe, begin + (1 << 32));
    assert_eq!(kernel.verdict(&copy, Moment::NEVER, NOW), Verdict::Invalidated);
}
