package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"countersign/configs"
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

// Strangers without TLS do not fill the log, nor hide a panic in it.
func TestHandshakesAreSparinglyLogged(t *testing.T) {
	var out bytes.Buffer
	log := slog.NewLogLogger(sparing{newLog(&out), rate.NewLimiter(0, 10)}, slog.LevelWarn)
	for range 100 {
		log.Print("http: TLS handshake error from 192.0.2.1:4711: EOF")
	}
	log.Print("http: panic serving 192.0.2.1:4711: oops")
	if n := strings.Count(out.String(), "handshake"); n != 10 || !strings.Contains(out.String(), "oops") {
		t.Errorf("%d lines\n%s", n, out.String())
	}
}

// Issuers whose callers can have the same names are warned of.
func TestIssuersAlike(t *testing.T) {
	a, b := configs.Issuer{URL: "https://a", GroupsClaim: "groups"}, configs.Issuer{URL: "https://b", GroupsClaim: "roles"}
	own := configs.Issuer{URL: "https://c", GroupsClaim: "groups", UsernamePrefix: "c:", GroupsPrefix: "c:"}
	half := configs.Issuer{URL: "https://d", GroupsClaim: "groups", UsernamePrefix: "d:"}
	cluster, second := configs.Issuer{URL: "https://e", Kubernetes: true}, configs.Issuer{URL: "https://f", Kubernetes: true}
	for _, row := range []struct {
		name string
		all  []configs.Issuer
		want int
	}{
		{"one", []configs.Issuer{a}, 0},
		{"two without prefixes", []configs.Issuer{a, b}, 1},
		{"one with prefixes", []configs.Issuer{a, own}, 0},
		{"one with a prefix for users only", []configs.Issuer{a, half}, 1},
		{"a cluster's", []configs.Issuer{a, cluster}, 0},
		{"two clusters'", []configs.Issuer{cluster, second}, 1},
	} {
		if got := issuersAlike(row.all); len(got) != row.want {
			t.Errorf("%s: %q", row.name, got)
		}
	}
}
