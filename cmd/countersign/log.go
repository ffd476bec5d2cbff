package main

import (
	"fmt"
	"io"
	"log/slog"

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
