// Written by tests/docs/schemas.py from the schemas that serve.

export type EventData = { event_id: string; schema: number; source: string; provider: string; job_id: string | null; ref: string | null; late: boolean; audio: AudioPart | null; transcript: TranscriptPart | null; media: StoredPart | null; document: StoredPart | null; error: ErrorPart | null; provider_data: Record<string, unknown>; replaces?: string };

export type AudioPart = { uri: string; url?: string | null; url_expires_at?: string | null; content_type: string; bytes: number; sha256: string; duration_seconds: number | null; duration_estimated: boolean; sample_rate_hz: number | null; channels: number | null; codec: string | null };

export type TranscriptPart = { text: string | null; confidence: number | null; language: string | null; duration_seconds: number | null; channels: number | null };

export type StoredPart = { uri: string; url?: string | null; url_expires_at?: string | null; content_type: string; bytes: number; sha256: string };

export type ErrorPart = { code: string | null; message: string; details: string | null };

export type Problem = { type?: string; title: string; status: number; detail: string };

export type DeliveryState = "dead" | "delivered" | "delivering" | "pending";

export type EventPage = { items: Array<EventShown>; next: string | null; cursor: string | null };

export type EventShown = { id: string; type: string; source: string; provider: string; job_id: string | null; ref: string | null; occurred_at: string; recorded_at: string; data: EventData };

export type EventWhole = { id: string; type: string; source: string; provider: string; job_id: string | null; ref: string | null; occurred_at: string; recorded_at: string; data: EventData; callback: CallbackShown | null; pickup: PickupShown | null; deliveries: Array<DeliveryWhole>; routing: Array<Decision> };

export type CallbackShown = { id: string; received_at: string; method: string; content_type: string; body_size: number; body_sha256: string; proofs: string; peer: string | null; secret: number | null; headers: Record<string, string | null>; token_id: string | null; issued_at: string | null; body_ms: number | null; proved_ms: number | null; stored_ms: number | null };

export type PickupShown = { id: string; state: PickupState; source: string; kind: PickupKind; job_id: string | null; ref: string | null; event_id: string; host: string | null; format: Record<string, unknown>; attempts: number; failures: number; due_at: string | null; deadline_at: string; created_at: string; updated_at: string; last_outcome: string | null; last_detail: string | null };

export type PickupState = "collected" | "collecting" | "gone" | "pending";

export type PickupKind = "expected" | "result";

export type DeliveryWhole = { id: string; state: DeliveryState; destination: string; event_id: string; event_type: string; job_id: string | null; ref: string | null; held_by: HeldBy | null; attempts: number; round_start: number; due_at: string | null; created_at: string; updated_at: string; last_outcome: string | null; attempts_made: Array<AttemptShown> };

export type HeldBy = "disabled" | "failing" | "order" | "paused" | "rate" | "retry_after";

export type AttemptShown = { number: number; started_at: string; duration_ms: number; outcome: OutcomeKind; status: number | null; detail: string; answer: string };

export type OutcomeKind = "blocked" | "collected" | "delivered" | "gone" | "not_stored" | "not_yet" | "refused" | "timeout" | "too_large" | "unreachable" | "unusable";

export type Decision = { destination: string; sent: boolean; rule: string };

export type Renormalized = { replaces: string; event_id: string | null };

export type AudioLink = { url: string; url_expires_at: string; content_type: string };

export type PageDeliveryShown = { items: Array<DeliveryShown>; next: string | null };

export type DeliveryShown = { id: string; state: DeliveryState; destination: string; event_id: string; event_type: string; job_id: string | null; ref: string | null; held_by: HeldBy | null; attempts: number; round_start: number; due_at: string | null; created_at: string; updated_at: string; last_outcome: string | null };

export type PageAttemptShown = { items: Array<AttemptShown>; next: string | null };

export type PagePickupShown = { items: Array<PickupShown>; next: string | null };

export type NewPickup = { source: string; result: string; ref?: string | null; deadline_seconds?: number | null; expect_within_seconds?: number | null; format?: Record<string, string | number> };

export type PickupWhole = { id: string; state: PickupState; source: string; kind: PickupKind; job_id: string | null; ref: string | null; event_id: string; host: string | null; format: Record<string, unknown>; attempts: number; failures: number; due_at: string | null; deadline_at: string; created_at: string; updated_at: string; last_outcome: string | null; last_detail: string | null; attempts_made: Array<PickupAttemptShown> };

export type PickupAttemptShown = { number: number; started_at: string; duration_ms: number; outcome: OutcomeKind; status: number | null; detail: string };

export type NewCallbackUrl = { source: string; ref?: string | null; expires_seconds?: number | null; format?: Record<string, string | number>; expect_within_seconds?: number | null; job_secret?: boolean; short?: boolean };

export type CallbackUrl = { url: string; source: string; token: string | null; ref: string | null; webhook_secret: string | null; expect_by: string | null; pickup_id: string | null };

export type PageRejectionShown = { items: Array<RejectionShown>; next: string | null };

export type RejectionShown = { id: string; at: string; source: string; status: number; kind: string; reason: string; method: string; peer: string | null; content_type: string; user_agent: string; token_id: string | null; ref: string | null; setting: string; headers: Array<string>; request_kept: boolean };

export type RejectionJudged = { verdict: string; reason: string; proofs: Array<ProofJudged> };

export type ProofJudged = { proof: string; holds: boolean; reason: string; signed: string | null };

export type Acceptance = { reason: string };

export type RejectionAccepted = { status: string; event_id: string; pickup_id: string | null };

export type SubmissionState = "accepted" | "open" | "refused" | "unknown";

export type PageSubmissionShown = { items: Array<SubmissionShown>; next: string | null };

export type SubmissionShown = { id: string; state: SubmissionState; application: string; source: string; request: string; status: number | null; job_id: string | null; ref: string | null; created_at: string; updated_at: string };

export type JobShown = { name: string; cause: Cause; sentence: string; steps: Array<StepShown>; events: Array<string>; pickups: Array<string> };

export type Cause = "dead" | "delivered" | "erased" | "expected" | "held" | "journaled" | "no_route" | "overdue" | "parked" | "paused" | "pickup_gone" | "pickup_waiting" | "rejected" | "removed" | "retrying" | "sending" | "submitted" | "unknown";

export type StepShown = { at: string; what: string; detail: string };

export type PageSourceShown = { items: Array<SourceShown>; next: string | null };

export type SourceShown = { name: string; provider: string; calls_back: boolean; polled: boolean; pickups_due: number; oldest_pickup_due_at: string | null };

export type Stats = { due_deliveries: Record<string, number>; dead_deliveries: Record<string, number>; due_pickups: Record<string, number>; journal: number; oldest_journaled_seconds: number };

export type PageDestinationShown = { items: Array<DestinationShown>; next: string | null };

export type DestinationShown = { name: string; kind: string; sources: Array<string>; events: Array<string>; due: number; oldest_due_at: string | null; dead: number; health: DestinationHealth };

export type DestinationHealth = { name: string; status: DestinationStatus; paused_at: string | null; disabled_at: string | null; failures: number; failing_since: string | null; probes: number; held_until: string | null };

export type DestinationStatus = "active" | "disabled" | "failing" | "paused";

export type TalliesShown = { items: Array<TallyShown>; ack: Array<AckShown> };

export type TallyShown = { at: string; kind: string; name: string; outcome: string; count: number };

export type AckShown = { at: string; source: string; count: number; p50_ms: number | null; p99_ms: number | null };

export type PageProcessShown = { items: Array<ProcessShown>; next: string | null };

export type ProcessShown = { id: string; host: string; version: string; role: string; started_at: string; seen_at: string; alive: boolean };

export type PageOperationShown = { items: Array<OperationShown>; next: string | null };

export type OperationShown = { id: string; kind: BulkKind; state: BulkState; selection: SelectionShown; rate: number | null; total: number; done: number; changed: number; requested_by: string; created_at: string; updated_at: string };

export type BulkKind = "backfill" | "renormalize" | "replay";

export type BulkState = "done" | "planned" | "running" | "stopped";

export type SelectionShown = { destination: string | null; state: DeliveryState | null; source: string | null; type: string | null; since: string | null; until: string | null };

export type NewReplay = { ids?: Array<string> | null; to?: string | null; destination?: string | null; state?: "dead" | "delivered" | null; source?: string | null; type?: string | null; since?: string | null; until?: string | null; rate?: number | null; dry_run?: boolean };

export type Replayed = { found: number; replayed?: number; added?: number; left_alone: number; dry_run: boolean; operation?: OperationShown | null };

export type NewRenormalization = { type?: string; source?: string | null; since?: string | null; until?: string | null; rate?: number | null; dry_run?: boolean };

export type NewErasure = { ref?: string | null; job_id?: string | null; event_id?: string | null; source?: string | null; dry_run?: boolean };

export type ErasureShown = { events: number; callbacks: number; deliveries: number; pickups: number; blobs: number; requests: number; journal_entries: number; unreadable: Array<string>; dry_run: boolean };

export type PageActShown = { items: Array<ActShown>; next: string | null };

export type ActShown = { id: string; at: string; token: string; action: string; subject: string; detail: string; peer: string | null; status: number | null };

export type Event =
  | { type: "speech.processing"; timestamp: string; data: EventData }
  | { type: "speech.completed"; timestamp: string; data: EventData }
  | { type: "speech.failed"; timestamp: string; data: EventData }
  | { type: "transcript.processing"; timestamp: string; data: EventData }
  | { type: "transcript.completed"; timestamp: string; data: EventData }
  | { type: "transcript.failed"; timestamp: string; data: EventData }
  | { type: "transcript.partial"; timestamp: string; data: EventData }
  | { type: "analysis.processing"; timestamp: string; data: EventData }
  | { type: "analysis.completed"; timestamp: string; data: EventData }
  | { type: "analysis.failed"; timestamp: string; data: EventData }
  | { type: "media.processing"; timestamp: string; data: EventData }
  | { type: "media.completed"; timestamp: string; data: EventData }
  | { type: "media.failed"; timestamp: string; data: EventData }
  | { type: "callback.overdue"; timestamp: string; data: EventData }
  | { type: "callback.parked"; timestamp: string; data: EventData }
  | { type: "submission.unknown"; timestamp: string; data: EventData }
  | { type: "source.failing"; timestamp: string; data: EventData }
  | { type: "source.recovered"; timestamp: string; data: EventData }
  | { type: "destination.failing"; timestamp: string; data: EventData }
  | { type: "destination.recovered"; timestamp: string; data: EventData }
  | { type: "destination.disabled"; timestamp: string; data: EventData }
  | { type: "destination.test"; timestamp: string; data: EventData };
