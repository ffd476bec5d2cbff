package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"golang.org/x/time/rate"

	"countersign/audit"
)

// newLog writes JSON lines. Whatever an API server, an issuer, Slack or a panic says
// is masked here, once for all lines, as in the audit log.
func newLog(w io.Writer) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Value.Kind() {
		case slog.KindString:
			a.Value = slog.StringValue(audit.MaskText(a.Value.String()))
		case slog.KindAny:
			if _, level := a.Value.Any().(slog.Level); !level {
				a.Value = slog.StringValue(audit.MaskText(fmt.Sprint(a.Value.Any())))
			}
		}
		return a
	}})
}

// sparing leaves out some of the lines that net/http writes about connections without
// TLS or with the wrong one: whoever can reach the address makes as many as he likes.
type sparing struct {
	slog.Handler
	limit *rate.Limiter
}

func (s sparing) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "http: TLS handshake error") && !s.limit.Allow() {
		return nil
	}
	return s.Handler.Handle(ctx, r)
}
