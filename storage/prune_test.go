package storage

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
)

// prunedTo commits records of what is older than the times until nothing is.
func prunedTo(t *testing.T, s *Store, payloads, records time.Time) (commits int) {
	t.Helper()
	for ; ; commits++ {
		p, err := s.Prunable(payloads, records)
		if err != nil {
			t.Fatal(err)
		}
		if p.PayloadsBefore == 0 && p.RecordsBefore == 0 {
			return commits
		}
		e := record("pruned")
		e.Record.Type, e.Record.Pruned, e.Record.Time = audit.LogPruned, &p, noon.Add(10_000*time.Hour)
		if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}}); err != nil {
			t.Fatal(err)
		}
	}
}

// Retention takes payloads out first and records later; what is left can still be
// verified, stored and exported, and what is open stays.
func TestPrune(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	s.db.NoSync = true // to be quick
	defer func() { s.Close() }()
	for i := range 1000 {
		e := record(fmt.Sprint(i))
		e.Record.Op, e.Record.Time = fmt.Sprintf("op%d", i), noon.Add(time.Duration(i)*time.Hour)
		payload(&e, []byte(fmt.Sprintf(`{"payload":%d}`, i)))
		state := approvals.Denied
		if i == 5 {
			state = approvals.PendingApproval
		}
		if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}, Operations: []approvals.Operation{{ID: e.Record.Op, Revision: 1, State: state}}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := prunedTo(t, s, noon, time.Time{}); n != 0 {
		t.Errorf("%d commits took out what is not old", n)
	}
	if n := prunedTo(t, s, noon.Add(600*time.Hour), noon.Add(300*time.Hour)); n != 1 {
		t.Errorf("%d commits; want 1", n)
	}
	for range 2 {
		var export bytes.Buffer
		if err := s.Records(1, audit.JSONL(&export)); err != nil {
			t.Fatal(err)
		}
		if first, _ := audit.Seq(export.Bytes()[:100]); first != 301 {
			t.Errorf("the first record is %d; want 301", first)
		}
		if _, err := s.Payload(600); err == nil {
			t.Error("payload 600 is there")
		}
		if p, err := s.Payload(601); err != nil || string(p) != `{"payload":600}` {
			t.Errorf("payload 601: %s, %v", p, err)
		}
		if _, err := s.Operation("op5"); err != nil {
			t.Errorf("an open operation is gone: %v", err)
		}
		if _, err := s.Operation("op6"); err == nil {
			t.Error("a closed operation is still there")
		}
		key, err := s.Verifier()
		if err != nil {
			t.Fatal(err)
		}
		report, err := s.Verify(t.Context(), key, nil)
		if err != nil || len(report.Findings) > 0 || report.First != 301 || report.Size != 1001 {
			t.Errorf("%+v, %v", report, err)
		}
		newest, err := s.Checkpoint()
		if err != nil {
			t.Fatal(err)
		}
		report, err = audit.VerifyExport(bytes.NewReader(export.Bytes()), key, [][]byte{newest})
		if err != nil || len(report.Findings) > 0 || report.First != 301 || report.Size != 1001 {
			t.Errorf("%+v, %v", report, err)
		}
		var found int
		if err := s.Search(&audit.Query{Op: "op700"}, 0, 0, true, func(uint64, []byte) error { found++; return nil }); err != nil || found != 1 {
			t.Errorf("%d found, %v", found, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, path, Options{})
	}
	// Everything, but for the newest record.
	prunedTo(t, s, noon.Add(5000*time.Hour), noon.Add(5000*time.Hour))
	key, _ := s.Verifier()
	if report, err := s.Verify(t.Context(), key, nil); err != nil || len(report.Findings) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}
