package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"countersign/admin"
)

// Of clusters the credential is named, and one that cannot be asked is an error.
func TestStatusClusters(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": oneRule, "config.yaml": settingsOf("p"), "data/x": ""})
	listener, err := admin.Listen("data/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	status := admin.Status{
		Waiting: 3, Log: admin.LogStatus{Seq: 70, Time: at}, LastError: &admin.ErrorStatus{Time: at, Message: "storing a record\x1b[2J"},
		Clusters: []admin.ClusterStatus{
			{Name: "east", Server: "https://east", Credential: "kubeconfig user bea, token until 2030-01-02T03:04:05Z", Impersonates: true, User: "bea", Reachable: true},
			{Name: "west", Server: "https://west", Credential: "in-cluster, token", Error: "no answer within 2s"},
		},
	}
	server := (&admin.Server{Log: slog.New(slog.DiscardHandler), Status: func() admin.Status { return status }}).HTTP()
	go server.Serve(listener)
	defer server.Close()
	out, errOut, code := execute("status", "-c", "config.yaml")
	for _, want := range []string{
		"https://east: reachable, as bea; impersonates the callers\n", "kubeconfig user bea, token until 2030-01-02T03:04:05Z\n",
		"https://west: not reachable\n", "error: no answer within 2s\n", "3 operations for approval\n", "record 70 at 2030-01-02T03:04:05Z\n", "at 2030-01-02T03:04:05Z: storing a record",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("got\n%s\nwant %s", out, want)
		}
	}
	if code != 1 || errOut != "countersign: cluster west: no answer within 2s\n" || strings.Contains(out, "\x1b") {
		t.Errorf("exit code %d, %q", code, errOut)
	}
	if out, _, _ := execute("status", "-c", "config.yaml", "-o", "json"); !strings.Contains(out, `"last_error"`) || !strings.Contains(out, `"impersonates": true`) {
		t.Errorf("got %s", out)
	}
}

// The latest error is remembered, masked, whatever it is logged with.
func TestLastError(t *testing.T) {
	var log bytes.Buffer
	failures := &lastError{}
	l := slog.New(failures.watch(slog.NewTextHandler(&log, nil)))
	l.Warn("a warning", "err", errors.New("x"))
	if got := failures.last(); got != nil {
		t.Errorf("got %+v", got)
	}
	l.With("room", "slack").WithGroup("g").ErrorContext(context.Background(), "sending", "op", "1", "err", errors.New("token ghp_u8jzPde0IgxLd6GncfBAepfJBd0Kh8oOOL8d refused"))
	if got := failures.last(); got == nil || !strings.HasPrefix(got.Message, "sending: token ***") || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("got %+v, log %s", got, log.String())
	}
}
