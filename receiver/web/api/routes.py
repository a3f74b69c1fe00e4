"""Every operation of the API."""

from __future__ import annotations

from receiver.settings.model import ApiScope
from receiver.web.api import (
    acts,
    callback_urls,
    deliveries,
    destinations,
    erasures,
    events,
    jobs,
    operations,
    overview,
    pickups,
    rejections,
    replays,
    stream,
    submissions,
    tallies,
)
from receiver.web.api.acts import Again
from receiver.web.api.operation import Operation
from receiver.web.views import (
    ActShown,
    AttemptShown,
    AudioLink,
    CallbackUrl,
    DeliveryShown,
    DeliveryWhole,
    DestinationHealth,
    DestinationShown,
    ErasureShown,
    EventPage,
    EventWhole,
    JobShown,
    OperationShown,
    Page,
    PickupShown,
    PickupWhole,
    ProcessShown,
    RejectionAccepted,
    RejectionJudged,
    RejectionShown,
    Renormalized,
    Replayed,
    SourceShown,
    Stats,
    SubmissionShown,
    TalliesShown,
)

_READ, _OPERATE = ApiScope.READ, ApiScope.OPERATE

_EVENTS = (
    Operation(
        "GET /events",
        _READ,
        "Lists events, newest first or in the order of recording",
        events.listed,
        query=events.EventQuery,
        gives=EventPage,
    ),
    Operation(
        "GET /events/{event_id}",
        _READ,
        "Shows an event with its callback, pickup, deliveries and attempts",
        events.one,
        gives=EventWhole,
    ),
    Operation(
        "GET /events/{event_id}/body",
        _READ,
        "Returns the kept body of its callback, secrets removed",
        events.body,
        gives="application/octet-stream",
    ),
    Operation(
        "POST /events/{event_id}/renormalize",
        _OPERATE,
        "Has today's code read its callback again; what differs becomes an event of its own",
        events.renormalize,
        gives=Renormalized,
    ),
    Operation(
        "GET /events/{event_id}/audio",
        _READ,
        "Leads to its audio by a fresh link, or tells the link",
        events.audio,
        query=events.LinkQuery,
        gives=AudioLink,
        statuses=(200, 302),
    ),
)

_STREAM = Operation(
    "GET /stream",
    _READ,
    "Streams events as they are recorded, as server-sent events",
    stream.events,
    query=stream.StreamQuery,
    gives="text/event-stream",
)

_DELIVERIES = (
    Operation(
        "GET /deliveries",
        _READ,
        "Lists deliveries, newest first",
        deliveries.listed,
        query=deliveries.DeliveryQuery,
        gives=Page[DeliveryShown],
    ),
    Operation(
        "GET /deliveries/{delivery_id}",
        _READ,
        "Shows a delivery with its attempts",
        deliveries.one,
        gives=DeliveryWhole,
    ),
    Operation(
        "GET /deliveries/{delivery_id}/attempts",
        _READ,
        "Lists its attempts, first to last",
        deliveries.attempts,
        gives=Page[AttemptShown],
    ),
)

_SUBMISSIONS = (
    Operation(
        "GET /submissions",
        _READ,
        "Lists jobs that applications submitted, newest first",
        submissions.listed,
        query=submissions.SubmissionQuery,
        gives=Page[SubmissionShown],
    ),
)

_PICKUPS = (
    Operation(
        "GET /pickups",
        _READ,
        "Lists pickups, newest first",
        pickups.listed,
        query=pickups.PickupQuery,
        gives=Page[PickupShown],
    ),
    Operation(
        "POST /pickups",
        _OPERATE,
        "Hands over a result that is to be fetched; 200 shows the pickup that it has already",
        pickups.add,
        body=pickups.NewPickup,
        gives=PickupShown,
        statuses=(201, 200),
    ),
    Operation(
        "GET /pickups/{pickup_id}",
        _READ,
        "Shows a pickup with its attempts",
        pickups.one,
        gives=PickupWhole,
    ),
    Operation(
        "POST /callback-urls",
        _OPERATE,
        "Makes a callback URL for one job",
        callback_urls.make,
        body=callback_urls.NewCallbackUrl,
        gives=CallbackUrl,
        statuses=(201,),
        again=Again.REFUSED,
    ),
)

_OVERVIEW = (
    Operation(
        "GET /rejections",
        _READ,
        "Lists callbacks that were refused, newest first",
        rejections.listed,
        query=rejections.RejectionQuery,
        gives=Page[RejectionShown],
    ),
    Operation(
        "POST /rejections/{rejection_id}/verify",
        _OPERATE,
        "Verifies a kept request again, by today's settings and as of its arrival; records nothing",
        rejections.verify,
        gives=RejectionJudged,
    ),
    Operation(
        "POST /rejections/{rejection_id}/accept",
        ApiScope.ADMIN,
        "Records a kept request that nothing proves, for a reason that the audit keeps; once more, it is a duplicate",
        rejections.accept,
        body=rejections.Acceptance,
        gives=RejectionAccepted,
    ),
    Operation(
        "GET /jobs/{name}",
        _READ,
        "Tells what became of a job, by its ref, its id at the provider or an event's id",
        jobs.one,
        query=jobs.JobQuery,
        gives=JobShown,
    ),
    Operation("GET /sources", _READ, "Lists the sources", overview.sources, gives=Page[SourceShown]),
    Operation(
        "GET /destinations",
        _READ,
        "Lists the destinations",
        destinations.listed,
        gives=Page[DestinationShown],
    ),
    Operation("GET /stats", _READ, "Tells how much waits", overview.stats, gives=Stats),
    Operation(
        "GET /tallies",
        _READ,
        "Tells what came out how often, by the minute or hour, over all processes",
        tallies.listed,
        query=tallies.TallyQuery,
        gives=TalliesShown,
    ),
    Operation(
        "GET /processes",
        _READ,
        "Lists the processes of the last 48 hours, those that began last first",
        tallies.processes,
        gives=Page[ProcessShown],
    ),
)

_ACTS = (
    Operation(
        "POST /replays",
        _OPERATE,
        "Sends events again, or for the first time to a destination that never got them; or counts them",
        replays.make,
        body=replays.NewReplay,
        gives=Replayed,
        again=Again.ANSWERED,
    ),
    Operation(
        "POST /renormalizations",
        _OPERATE,
        "Has today's code read many callbacks again, as an operation; or counts them",
        replays.renormalize,
        body=replays.NewRenormalization,
        gives=Replayed,
        again=Again.ANSWERED,
    ),
    Operation(
        "GET /operations",
        _READ,
        "Lists operations on many rows and how far each has come, newest first",
        operations.listed,
        query=operations.OperationQuery,
        gives=Page[OperationShown],
    ),
    Operation("GET /operations/{operation_id}", _READ, "Shows one", operations.one, gives=OperationShown),
    Operation(
        "POST /operations/{operation_id}/resume",
        _OPERATE,
        "Runs one that was planned or stopped; or at another rate",
        operations.resume,
        query=operations.RunQuery,
        gives=OperationShown,
    ),
    Operation(
        "POST /operations/{operation_id}/stop",
        _OPERATE,
        "Stops one; what it has done stays done",
        operations.stop,
        gives=OperationShown,
    ),
    *(
        Operation(
            f"POST /destinations/{{name}}/{action}", _OPERATE, does, destinations.act, gives=DestinationHealth
        )
        for action, does in (
            ("pause", "Holds its deliveries; they spend no attempts"),
            ("resume", "Sends a paused destination's deliveries again"),
            ("enable", "Sends again to one that answered 410 or fails: its failures are forgotten"),
        )
    ),
    Operation(
        "POST /erasures",
        ApiScope.ADMIN,
        "Erases all data of one subject, or counts it",
        erasures.make,
        body=erasures.NewErasure,
        gives=ErasureShown,
    ),
    Operation(
        "GET /audit",
        _READ,
        "Lists what was done over the API, newest first",
        acts.listed,
        query=acts.ActQuery,
        gives=Page[ActShown],
    ),
)

OPERATIONS = (*_EVENTS, _STREAM, *_DELIVERIES, *_PICKUPS, *_SUBMISSIONS, *_OVERVIEW, *_ACTS)
