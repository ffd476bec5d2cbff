package main

import (
	"context"
	"log/slog"
	"time"

	"countersign/gate"
)

// pruneEvery is how often the log is looked through for what is too old.
const pruneEvery = time.Hour

// retain takes out of the log what is older than it is to be kept, until ctx ends.
// A duration of 0 keeps all.
func retain(ctx context.Context, g *gate.Gate, payloads, records time.Duration, log *slog.Logger) {
	if payloads == 0 && records == 0 {
		return
	}
	older := func(age time.Duration) time.Time {
		if age == 0 {
			return time.Time{}
		}
		return time.Now().Add(-age)
	}
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := g.Prune(older(payloads), older(records)); err != nil {
			log.Error("taking what is too old out of the audit log", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
