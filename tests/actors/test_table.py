"""Which test holds which promise: the semantics that a user of OTP may expect, and the hazards
of actors on a trio loop. Each line names its test as `<file>::<test>`; files of supervisors are
in `tests/supervision`. The test below keeps the table true.

Semantics

     1  FIFO per sender, also from threads      semantics::test_01_messages_of_one_sender_keep_their_order
                                                semantics::test_01_messages_of_a_thread_keep_their_order
     2  one message at a time, across awaits    semantics::test_02_one_message_at_a_time_also_across_awaits
     3  system lane before the user lane        semantics::test_03_15_shutdown_overtakes_the_queue_and_runs_on_stop
     4  bounded mailbox, five policies          semantics::test_04_each_policy_at_the_bound
                                                mailbox::test_those_who_wait_for_room_are_served_in_their_order
     5  send to the dead: dropped or raised     semantics::test_05_06_the_dead_refuse_tell_and_call_and_drop_cast
     6  call to the dying: error with reason    semantics::test_06_callers_waiting_and_queued_learn_of_a_kill
     7  a crash in a call reaches the caller    semantics::test_07_a_fault_ends_the_actor_and_reaches_the_caller
     8  an error reply without a crash          semantics::test_08_a_refusal_is_only_an_answer
     9  timeout of 5 s, late reply invisible    semantics::test_09_a_late_answer_is_dropped
    10  a cancelled call is withdrawn           semantics::test_10_a_withdrawn_call_is_never_begun
    11  calling oneself or in a ring fails      semantics::test_11_calling_oneself_or_in_a_ring_is_refused_at_once
    12  start is acknowledged                   semantics::test_12_start_is_acknowledged_and_its_failure_leaves_nothing
    13  exit reasons                            semantics::test_13_exit_reasons
    14  kill interrupts, skips on_stop          semantics::test_14_kill_interrupts_a_handler_and_skips_on_stop
    15  shutdown runs on_stop                   semantics::test_03_15_shutdown_overtakes_the_queue_and_runs_on_stop
    16  on_stop, on_failure that raise          semantics::test_16_on_stop_and_on_failure_may_raise
    17  siblings unaffected by a crash          semantics::test_17_siblings_do_not_feel_a_crash
    18  monitor: exactly one Down               semantics::test_18_19_a_monitor_gives_one_down_and_none_after_demonitor
    19  demonitor flushes                       semantics::test_18_19_a_monitor_gives_one_down_and_none_after_demonitor
    20  links both ways, normal kills nobody    semantics::test_20_22_links
    21  trapped exits are messages              semantics::test_21_a_trapped_signal_is_a_message_but_kill_is_not
    22  unlink, link to the dead                semantics::test_20_22_links
    23  one_for_one, fresh state and identity   supervisor::test_a_fallen_child_alone_is_restarted_afresh_and_as_another
    24  one_for_all, backwards then forwards    supervisor::test_one_for_all_stops_backwards_and_starts_forwards
    25  rest_for_one                            supervisor::test_rest_for_one_touches_only_those_started_later
    26  restart kind x reason                   supervisor::test_the_restart_kind_and_the_reason_decide
    27  a transient one revived by a sibling    supervisor::test_a_transient_child_that_is_done_is_revived_by_a_siblings_restart
    28  intensity in a sliding window           supervisor::test_the_window_slides
                                                supervisor::test_one_restart_too_many_ends_the_supervisor_in_order
    29  escalation renews the subtree           supervisor::test_giving_up_is_the_next_supervisors_matter_and_renews_the_subtree
    30  a failed restart is tried again         supervisor::test_a_restart_that_fails_is_tried_again_and_each_try_counts
    31  shutdown wins over a restart loop       supervisor::test_shutdown_wins_over_an_endless_restart
    32  shutdown in reverse, with deadlines     supervisor::test_children_stop_in_the_opposite_order
                                                supervisor::test_a_child_past_its_deadline_is_killed_and_that_is_told
                                                supervisor::test_brutally_means_never_asked
                                                supervisor::test_forever_means_waited_for
    33  a failed start rolls back               supervisor::test_a_failed_start_rolls_back_those_before_it
    34  a killed supervisor leaves no orphan    supervisor::test_a_killed_supervisor_leaves_no_orphan
                                                supervisor::test_a_supervisor_killed_in_the_middle_of_a_restart_leaves_no_orphan
    35  dynamic: O(1), bound, stop at once      dynamic::test_the_cost_of_a_child_does_not_grow_with_their_number
                                                dynamic::test_a_full_supervisor_refuses
                                                dynamic::test_all_stop_at_once_each_within_its_own_deadline
    36  errors of the verbs                     supervisor::test_the_verbs_refuse_what_the_state_forbids
                                                dynamic::test_the_verbs_refuse_what_makes_no_sense_here
    37  significant children, auto_shutdown     supervisor::test_any_significant_childs_end_ends_all
                                                supervisor::test_the_last_significant_childs_end_ends_all
    38  names: unique, freed, kept              semantics::test_38_names_are_unique_and_freed
                                                supervisor::test_a_name_is_kept_across_restarts
    39  state machine: timeouts, postponing     machine::test_39_a_state_timeout_ends_with_its_state
                                                machine::test_39_a_postponed_message_comes_first_after_the_change
    40  subscribe: snapshot and sequence        topic::test_40_a_subscriber_sees_a_snapshot_then_every_change
                                                topic::test_40_a_slow_subscriber_lags_and_a_dead_one_is_forgotten
    41  partitioned supervisor                  partition::test_a_partition_serves_its_keys_across_restarts
    42  sys: state, suspend, trace              introspection::test_42_info_tells_what_an_actor_does
                                                introspection::test_42_a_suspended_actor_handles_nothing_until_resumed
    43  threads and the loop together           threads::test_43_the_loop_awaits_a_thread
                                                threads::test_43_a_thread_asks_an_actor_on_the_loop
                                                semantics::test_43_a_thread_waits_for_room
    44  an end in order on ^C, cancel, exit     semantics::test_44_leaving_the_system_ends_all_in_order
                                                threads::test_a_system_ends_its_threads_in_their_place_among_the_actors
    45  no leak after a crash                   semantics::test_45_a_crash_leaks_nothing
    46  equal to OTP on random histories        otp_difference::test_no_history_tells_them_apart

Hazards

     1  Cancelled is a BaseException            hazards::test_hazard_cancelled_ends_one_actor_and_no_other
     2  exception groups from a nursery         semantics::test_hazard_exception_groups
     3  ^C and SystemExit in an actor           hazards::test_hazard_an_interrupt_in_an_actor_ends_the_system_in_order
                                                edges::test_a_group_with_an_interrupt_ends_the_system
                                                threads::test_what_is_no_exception_fails_every_caller_at_once_and_ends_the_system
     4  a swallowed Cancelled                   hazards::test_hazard_a_handler_that_swallows_cancelled_dies_at_its_next_checkpoint
     5  a shielded handler                      hazards::test_hazard_a_shielded_handler_delays_only_its_own_kill
                                                supervisor::test_a_handler_that_shields_itself_delays_only_its_own_kill
     6  a handler that never yields             introspection::test_hazard_the_watchdog_names_the_one_who_holds_the_loop
     7  a flood starves the loop                hazards::test_hazard_a_flood_leaves_others_their_turn
     8  a blocking pykka call on the loop       hazards::test_hazard_every_blocking_call_of_pykka_is_refused_on_the_loop
                                                hazards::test_hazard_blocking_on_a_thread_actor_is_refused_on_the_loop
     9  a start that raises or hangs            hazards::test_hazard_a_start_that_raises_or_hangs_is_told_and_leaves_nothing
                                                threads::test_a_start_that_exits_hangs_or_is_called_off_is_told
    10  busy restarting ignores shutdown        supervisor::test_shutdown_wins_over_an_endless_restart
    11  a cancelled ask, a late reply           hazards::test_hazard_a_cancelled_ask_is_skipped_and_a_late_reply_dropped
    12  a mutual ask, concurrent                hazards::test_hazard_two_that_call_each_other_at_once_are_not_stuck
    13  tell to the dead                        hazards::test_hazard_what_is_told_to_the_dead_is_refused_or_dropped_as_declared
    14  asks in flight at an end                hazards::test_hazard_asks_in_flight_fail_when_the_target_or_the_system_ends
                                                hazards::test_senders_that_wait_learn_of_the_end
    15  a traceback leaks the actor             hazards::test_hazard_an_actor_that_waits_keeps_no_dead_one_alive
                                                semantics::test_45_a_crash_leaks_nothing
    16  only weak references                    hazards::test_hazard_an_actor_that_nobody_refers_to_lives_on
    17  random start order in a batch           hazards::test_hazard_actors_start_in_the_order_of_their_spawns
    18  messages shared by reference            hazards::test_hazard_messages_are_shared_and_so_frozen
    19  context copied into children            hazards::test_hazard_a_child_does_not_inherit_whose_handler_runs
    20  on_stop hangs or raises at a kill       hazards::test_hazard_an_on_stop_that_hangs_or_raises_does_not_escape_a_kill

All of them at once: soak::test_a_storm_of_kills_leaves_nobody_waiting_and_nothing_behind
"""  # noqa: E501  # a line of the table is one line

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOMS = ("actors", "supervision")


def test_every_line_of_the_table_names_a_test_that_exists() -> None:
    text = __doc__ or ""
    semantics, hazards = text.split("\nHazards\n")
    for part, count in ((semantics, 46), (hazards, 20)):
        numbers = [int(number) for number in re.findall(r"^ +(\d+)  ", part, re.MULTILINE)]
        assert numbers == list(range(1, count + 1))
        lines = re.findall(r"^ +\d+  .*", part, re.MULTILINE)
        assert all("::test_" in line for line in lines)
    for noun, name in re.findall(r"(\w+)::(test_\w+)", text):
        sources = [TESTS / room / f"test_{noun}.py" for room in ROOMS]
        found = [source.read_text() for source in sources if source.exists()]
        assert any(f"def {name}(" in source for source in found), (noun, name)


def test_every_hazard_test_is_in_the_table() -> None:
    for source in (TESTS / "actors").glob("test_*.py"):
        for name in re.findall(r"def (test_hazard_\w+)\(", source.read_text()):
            assert name in (__doc__ or ""), name
