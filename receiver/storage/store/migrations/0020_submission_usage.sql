-- What each application has used of its limits in the window that is under way, over all processes.

CREATE TABLE submission_usage (
    application TEXT NOT NULL,
    what TEXT NOT NULL,
    time_window BIGINT NOT NULL,
    used BIGINT NOT NULL,
    PRIMARY KEY (application, what)
);
