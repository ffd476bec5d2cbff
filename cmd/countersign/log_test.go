package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// No line of the log holds a secret, in whatever way it comes; what an operation is
// found by stays as it is.
func TestLogIsMasked(t *testing.T) {
	const secret = "ghp_u8jzPde0IgxLd6GncfBAepfJBd0Kh8oOOL8d"
	const op, digest = "0198c0de-0000-7000-8000-000000000000", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	var out bytes.Buffer
	log := slog.New(newLog(&out))
	log.Warn("refused "+secret, "err", errors.New("token "+secret), "panic", any([]string{secret}), "text", secret)
	log.With("text", secret).WithGroup("g").Error("x", slog.Group("h", "err", errors.New(secret)))
	slog.NewLogLogger(log.Handler(), slog.LevelWarn).Print("http: panic serving: " + secret)
	log.Error("x", "op", op, "digest", digest, "names", []string{"a", "b"})
	if strings.Contains(out.String(), secret) {
		t.Errorf("a secret stands in\n%s", out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var last map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last["op"] != op || last["digest"] != digest || last["level"] != "ERROR" {
		t.Errorf("%s %v", lines[len(lines)-1], err)
	}
}
