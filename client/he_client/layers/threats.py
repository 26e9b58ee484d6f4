"""The threats, with the layers that answer each: the table of docs/layers.md. docs/threat-model.md has them in full."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Threat:
    """`by`: the layers that answer it, all of them needed, with tests (`file::function` in tests/) that show it."""

    id: str
    title: str
    by: dict[str, tuple[str, ...]]
    left: str  #: what stays when the layers work as meant


THREATS = {
    one.id: one
    for one in (
        Threat(
            "identifiers",
            "names and numbers of people in texts, read by who embeds, stores or is shown them",
            {
                "text": (
                    "test_text_pipeline.py::test_all_that_is_found_is_covered_once",
                    "test_text_pipeline.py::test_any_text",
                    "test_pseudonyms.py::test_a_pseudonym_is_an_hmac_under_the_key_of_its_field",
                    "test_vault.py::test_the_file_is_private_and_shows_nothing",
                )
            },
            "what no recogniser found, and who a text is about without naming them",
        ),
        Threat(
            "inversion",
            "vectors or models that others get give away what they were made of",
            {
                "privacy": (
                    "test_dp_release.py::test_audit_of_released_embeddings",
                    "test_dp_release.py::test_audit_of_training",
                    "test_dp_budget.py::test_the_whole_budget_at_once_and_nothing_after_it",
                )
            },
            "what ε allows; that somebody is among the rows",
        ),
        Threat(
            "aggregator",
            "who adds up what several sites learnt reads or alters their updates, and so their records",
            {
                "federated": (
                    "test_encrypted_sums.py::test_who_adds_loads_nothing_that_decrypts",
                    "test_encrypted_sums.py::test_every_kind_of_changed_sum_is_refused",
                    "test_federated.py::test_separate_processes_over_tls",
                )
            },
            "an aggregator together with one site; what sums and models say of records, without noise",
        ),
        Threat(
            "curious",
            "a curious server reads vectors, queries, scores, texts or ids",
            {
                "encryption": (
                    "test_keyless.py::test_a_serving_process_loads_nothing_that_decrypts",
                    "test_rules.py::test_ciphertexts_are_uniform",
                    "test_sealing.py::test_seal_round_trip_and_every_mismatch",
                )
            },
            "RLWE, AES and HMAC-SHA256 as assumptions; sizes, times, lengths",
        ),
        Threat(
            "found",
            "what is fetched after a search tells the server what was found",
            {"payloads": ("test_sdk.py::test_what_fetching_payloads_shows",)},
            '`payloads="direct"` gives it away, by choice',
        ),
        Threat(
            "released",
            "scores that others see give away the key",
            {
                "scores": (
                    "test_score_release.py::test_noise_at_the_bound_in_every_row",
                    "test_score_release.py::test_every_term_of_the_noise_against_one_row",
                    "test_released.py::test_the_answer_after_the_budget_warns_and_only_that",
                )
            },
            "as many exact scores of a row as it has coordinates give away that row, as in plaintext",
        ),
        Threat(
            "key_file",
            "key files are stolen, altered or made up",
            {
                "keys": (
                    "test_key_files.py::test_altered_files_do_not_open",
                    "test_key_files.py::test_hostile_parameters_are_refused",
                )
            },
            "weak passphrases; who controls the client's machine",
        ),
        Threat(
            "lying",
            "a lying server alters, swaps, replays or cuts answers",
            {
                "verification": (
                    "test_malicious.py::test_every_lie_is_refused_or_harmless",
                    "test_lying_server.py::test_three_thousand_lies",
                    "test_malicious.py::test_right_and_wrong_answers_look_alike_on_the_wire",
                )
            },
            "a try passes with 2^-92.9; no answer is no answer",
        ),
        Threat(
            "rollback",
            "an older or forked state, or another collection of the name, is shown",
            {
                "pins": (
                    "test_client_state.py::test_an_older_manifest_is_refused",
                    "test_signing.py::test_a_server_that_goes_back_is_caught_after_a_restart",
                    "test_client_state.py::test_one_collection_is_not_served_as_another",
                )
            },
            "a client that has seen nothing; clients that never compare",
        ),
        Threat(
            "writer",
            "a key holder who is no writer commits",
            {
                "signatures": (
                    "test_signing.py::test_nobody_else_may",
                    "test_signing.py::test_only_the_owner_changes_the_writers",
                    "test_signing.py::test_a_writer_commits_and_others_only_read",
                )
            },
            "they read everything in any case",
        ),
        Threat(
            "bytes",
            "hostile messages, files and archives",
            {
                "parsers": (
                    "test_fuzz.py::test_no_input_breaks_a_parser",
                    "test_vectors.py::test_what_is_malformed_is_refused",
                    "test_lying_server.py::test_fuzzed_responses",
                )
            },
            "what fuzzing did not reach",
        ),
        Threat(
            "loss",
            "a lost key, a damaged disk, a server that deletes",
            {
                "copies": (
                    "test_key_backup.py::test_any_three_of_five_restore_it",
                    "test_archive.py::test_import_elsewhere_gives_the_same_answers",
                    "test_backup.py::test_there_and_back",
                )
            },
            "what no copy has",
        ),
        Threat(
            "network",
            "an eavesdropper or a man in the middle",
            {
                "tls": (
                    "test_tls.py::test_only_tls_1_3_is_spoken",
                    "test_tls.py::test_a_client_trusts_the_authority_it_names",
                )
            },
            "sizes and times; who holds an authority's key",
        ),
        Threat(
            "unknown",
            "an unknown caller",
            {
                "identity": (
                    "test_access.py::test_nobody_calls_without_a_name",
                    "test_principals.py::test_nobody_calls_over_tls_without_showing_something",
                )
            },
            "stolen certificates and tokens, until they end",
        ),
        Threat(
            "known",
            "a known caller does what they may not, or looks into another tenant",
            {
                "policies": (
                    "test_access.py::test_a_tenant_learns_nothing_of_another",
                    "test_access.py::test_roles",
                    "test_policy.py::test_whatever_no_role_grants_is_denied",
                )
            },
            "what they may do",
        ),
        Threat(
            "greedy",
            "a caller asks too much",
            {
                "quotas": (
                    "test_quotas.py::test_queries_of_a_collection_never_free",
                    "test_admission.py::test_bytes_in_flight_are_bounded",
                )
            },
            "distributed floods",
        ),
        Threat(
            "denied",
            "somebody denies what they did, or an operator what was decided",
            {
                "audit": (
                    "test_access.py::test_every_decision_is_written_down",
                    "test_audit.py::test_no_tampering_goes_unseen",
                    "test_audit.py::test_a_chain_made_anew_is_not_the_one_that_was_signed",
                )
            },
            "lines after the last head that was exported",
        ),
        Threat(
            "disk",
            "a stolen disk or backup tells names, sizes, who did what",
            {
                "at_rest": (
                    "test_at_rest.py::test_nothing_can_be_read_from_the_disk",
                    "test_at_rest.py::test_neither_key_opens_it",
                )
            },
            "nothing is gained where the key is on the same disk",
        ),
    )
}

#: What no layer protects, whatever was answered (docs/threat-model.md, "What is not protected").
NEVER = (
    "sizes, times, who asks, how often and in which collection",
    "endpoints: who controls the client's process has keys and plaintext",
    "colluding key holders: the keys of a collection are one",
    "availability: a server can refuse, delay and delete",
    "forward secrecy: recordings open for whoever gets the key later",
    "what hits that are shown say about rows, as in plaintext",
)
