package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"filippo.io/age"
	"filippo.io/torchwood"
	checkpoints "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/action"
	"countersign/admin"
	"countersign/audit"
	"countersign/gate"
	"countersign/policy"
	"countersign/storage"
)

// logged is a store in the place that config.yaml says, with so many records.
func logged(t *testing.T, records int) *storage.Store {
	t.Helper()
	in(t, map[string]string{"p/p.yaml": oneRule, "config.yaml": settingsOf("p"), "data/x": ""})
	store, err := storage.Open("data/countersign.db", storage.Options{Origin: "log.example/audit"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range records {
		add(t, store, fmt.Sprint("record ", n+1))
	}
	return store
}

func add(t *testing.T, store *storage.Store, id string) {
	t.Helper()
	r := audit.Record{V: audit.Version, ID: id, Time: time.Now().UTC(), Type: audit.LogOpened, Outcome: audit.Success}
	if err := store.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{{Record: r}}}); err != nil {
		t.Fatal(err)
	}
}

// socket serves the store at the socket of config.yaml.
func socket(t *testing.T, store *storage.Store) (stop func()) {
	t.Helper()
	listener, err := admin.Listen("data/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	server := (&admin.Server{Audit: store, Log: slog.New(slog.DiscardHandler)}).HTTP()
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return func() { server.Close() }
}

// Who follows gets each record as it comes; interrupted, it ends in peace, and the
// next one goes on where it ended, also after the server was away.
func TestExportFollow(t *testing.T) {
	store := logged(t, 3)
	defer store.Close()
	stop := socket(t, store)
	follow := func() (lines *bufio.Reader, interrupt context.CancelFunc, ended chan string) {
		ctx, interrupt := context.WithCancel(t.Context())
		r, w := io.Pipe()
		ended = make(chan string, 1)
		go func() {
			var errOut strings.Builder
			code := run(ctx, strings.Fields("audit export --follow --cursor cursor -c config.yaml"), strings.NewReader(""), w, &errOut)
			w.Close()
			ended <- strconv.Itoa(code) + " " + errOut.String()
		}()
		return bufio.NewReader(r), interrupt, ended
	}
	next := func(lines *bufio.Reader, want uint64) {
		t.Helper()
		line, err := lines.ReadString('\n')
		if seq, ok := audit.Seq([]byte(line)); err != nil || !ok || seq != want {
			t.Fatalf("got %q, %v; want record %d", line, err, want)
		}
	}
	lines, interrupt, ended := follow()
	for seq := range uint64(3) {
		next(lines, seq+1)
	}
	add(t, store, "while it follows")
	next(lines, 4)
	interrupt()
	if how := <-ended; how != "0 " {
		t.Errorf("interrupted, it ended with %s", how)
	}
	add(t, store, "while nobody follows")
	lines, _, ended = follow()
	next(lines, 5)
	stop()
	if how := <-ended; !strings.HasPrefix(how, "1 countersign: reading records: the server broke off: ") || !strings.Contains(how, "go on with --from 6 or a cursor") {
		t.Errorf("without its server, it ended with %s", how)
	}
	socket(t, store)
	add(t, store, "after the server was away")
	lines, interrupt, ended = follow()
	next(lines, 6)
	interrupt()
	<-ended
}

// Verifiers that others wrote accept what is exported: checkpoint, tiles, entries and
// proofs.
func TestExportInterop(t *testing.T) {
	store := logged(t, 600) // two full tiles and a part of one
	defer store.Close()
	socket(t, store)
	succeed(t, strings.Fields("audit export --format tiles --to tiles -c config.yaml")...)
	for n := range 3 {
		add(t, store, fmt.Sprint("more ", n))
	}
	succeed(t, strings.Fields("audit export --format tiles --to tiles -c config.yaml")...)

	public, err := os.ReadFile("data/audit.pub")
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(public)))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := os.ReadFile("tiles/checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	policy := torchwood.ThresholdPolicy(2, torchwood.OriginPolicy("log.example/audit"), torchwood.SingleVerifierPolicy(verifier))
	head, _, err := torchwood.VerifyCheckpoint(signed, policy)
	if err != nil || head.N != 603 {
		t.Fatalf("%+v, %v", head, err)
	}
	theirs, _, _, err := checkpoints.ParseCheckpoint(signed, "log.example/audit", verifier)
	if err != nil || theirs.Size != 603 || string(theirs.Hash) != string(head.Hash[:]) {
		t.Fatalf("%+v, %v", theirs, err)
	}
	tiles, err := torchwood.NewTileFS(os.DirFS("tiles"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := torchwood.NewClient(tiles)
	if err != nil {
		t.Fatal(err)
	}
	leaves := strings.Split(strings.TrimSuffix(succeed(t, strings.Fields("audit export -c config.yaml")...), "\n"), "\n")
	n := 0
	for i, entry := range client.AllEntries(t.Context(), head.Tree, 0) { // which checks each against the checkpoint
		if int(i) != n || leaves[n] != string(entry) {
			t.Fatalf("entry %d is %s", i, entry)
		}
		n++
	}
	if err := client.Err(); err != nil || n != 603 {
		t.Fatalf("%d entries, %v", n, err)
	}
	for _, seq := range []int{1, 256, 257, 600, 603} {
		text := succeed(t, "audit", "proof", strconv.Itoa(seq), "-c", "config.yaml")
		leaf := tlog.RecordHash([]byte(leaves[seq-1]))
		if err := torchwood.VerifyProof(policy, leaf, []byte(text)); err != nil {
			t.Errorf("proof of record %d: %v", seq, err)
		}
		if err := torchwood.VerifyProof(policy, tlog.RecordHash([]byte("another record")), []byte(text)); err == nil {
			t.Errorf("proof of record %d proves another one", seq)
		}
		above, _, _ := strings.Cut(text, "\n\n")
		var hashes [][]byte
		for _, line := range strings.Split(above, "\n")[2:] {
			h, err := base64.StdEncoding.DecodeString(line)
			if err != nil {
				t.Fatal(err)
			}
			hashes = append(hashes, h)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(seq-1), theirs.Size, leaf[:], hashes, theirs.Hash); err != nil {
			t.Errorf("proof of record %d: %v", seq, err)
		}
	}

	// Another log does not go into the same folder.
	if err := os.WriteFile("tiles/checkpoint", []byte(strings.ReplaceAll(string(signed), "log.example", "other.example")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := execute(strings.Fields("audit export --format tiles --to tiles -c config.yaml")...); code != 1 || !strings.Contains(errOut, "holds something else") {
		t.Errorf("exit %d, %s", code, errOut)
	}
}

// Auditors read with their key what is masked for all others.
func TestShowUnmasked(t *testing.T) {
	store := logged(t, 0)
	defer store.Close()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := audit.NewSealer([]string{identity.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("auditor", []byte(identity.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other, _ := age.GenerateX25519Identity()
	if err := os.WriteFile("other", []byte(other.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := audit.Record{V: audit.Version, ID: "1", Time: time.Now().UTC(), Type: audit.ExecOutcome, Op: "op-1", Outcome: audit.Success, Payload: &audit.Payload{
		SHA256: "c12adbedcce5e82c4e1a64f6f40cecef17d2955e6fd86d1e1c1b1e4c32b1fcb5", Bytes: 20,
	}}
	e := gate.Entry{Record: r, Payload: []byte(`{"password":"***"}`)}
	if e.Sealed, err = sealer.Seal([]byte(`{"password":"hunter2"}`), e.Record.Payload); err != nil {
		t.Fatal(err)
	}
	commit := func(e gate.Entry) {
		if err := store.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}}); err != nil {
			t.Fatal(err)
		}
	}
	socket(t, store)
	commit(e) // whose hash is not that of its payload
	if out := succeed(t, strings.Fields("audit show op-1 --payloads -c config.yaml")...); !strings.Contains(out, "not shown: it is not what the record commits to") || strings.Contains(out, "***") {
		t.Errorf("got %s", out)
	}
	sum := sha256.Sum256(e.Payload)
	good := *e.Record.Payload
	good.SHA256, e.Record.Payload, e.Record.Op = hex.EncodeToString(sum[:]), &good, "op-2"
	commit(e)
	if out := succeed(t, strings.Fields("audit show op-2 -c config.yaml")...); strings.Contains(out, "password") {
		t.Errorf("got %s", out)
	}
	if out := succeed(t, strings.Fields("audit show op-2 --payloads -c config.yaml")...); !strings.Contains(out, `"password": "***"`) || strings.Contains(out, "hunter2") {
		t.Errorf("got %s", out)
	}
	if out := succeed(t, strings.Fields("audit show op-2 --identity auditor -c config.yaml")...); !strings.Contains(out, `"password": "hunter2"`) {
		t.Errorf("got %s", out)
	}
	if out := succeed(t, strings.Fields("audit show op-2 --identity other -c config.yaml")...); strings.Contains(out, "hunter2") || !strings.Contains(out, "not shown: opening a sealed payload") {
		t.Errorf("got %s", out)
	}
}

func TestReadTime(t *testing.T) {
	now := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"2026-01-31T08:00:00+01:00": "2026-01-31T07:00:00Z", "2h": "2026-03-14T10:00:00Z", "7d": "2026-03-07T12:00:00Z", "90m": "2026-03-14T10:30:00Z", "0d": "2026-03-14T12:00:00Z",
	} {
		if got, err := readTime("since", text, now); err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"yesterday", "7", "-2h", "-1d", "1.5d", "2026-01-31", "1500-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "99999999d", " 2h"} {
		if got, err := readTime("since", text, now); err == nil || !strings.Contains(err.Error(), "such as 2h or 7d") {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

// Sessions are told apart by their callers also where these gave them the same name,
// and what a crash cut off is lost.
func TestSessions(t *testing.T) {
	store := logged(t, 1)
	defer store.Close()
	socket(t, store)
	at := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	write := func(who, kind, op, outcome string, change func(*audit.Record)) {
		t.Helper()
		at = at.Add(time.Minute)
		r := audit.Record{V: audit.Version, ID: "x", Time: at, Type: kind, Op: op, Outcome: outcome, Session: "agent:both"}
		if r.Principal = (&action.Principal{Subject: who, Username: who}); who == "" {
			r.Principal, r.Session = nil, ""
		}
		if change != nil {
			change(&r)
		}
		if err := store.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{{Record: r}}}); err != nil {
			t.Fatal(err)
		}
	}
	request := func(r *audit.Record) {
		r.Tool, r.Actions = &audit.Tool{Name: "scale"}, []audit.Action{{Verb: action.Patch, Resource: "v1/pods", Cluster: "c", AuditID: r.Op + ".1", Code: 200}}
	}
	hostile := func(r *audit.Record) {
		r.Source = &audit.Source{Transport: "http", Agent: "a\x1b[2J"}
	}
	write("anna", audit.SessionStarted, "", audit.Success, hostile)
	write("bert", audit.SessionStarted, "", audit.Success, nil)
	write("anna", audit.ToolIntent, "op-1", "", request)
	write("bert", audit.ToolIntent, "op-2", "", request)
	write("bert", audit.PolicyDecided, "op-2", audit.Denied, nil)
	write("anna", audit.ExecStarted, "op-1", audit.Pending, request)
	write("anna", audit.ExecOutcome, "op-1", audit.Success, request)
	write("bert", audit.SessionEnded, "", audit.Success, func(r *audit.Record) { r.End = &audit.SessionEnd{Reason: "idle", Calls: 1} })
	write("", audit.LogOpened, "", audit.Success, nil)
	write("bert", audit.SessionStarted, "", audit.Success, nil)

	got := succeed(t, strings.Fields("audit sessions -c config.yaml")...)
	var rows [][]string
	for line := range strings.Lines(got) {
		rows = append(rows, strings.Fields(line))
	}
	want := [][]string{
		{"SESSION", "WHO", "CLIENT", "START", "END", "CALLS", "CHANGES", "DENIED"},
		{"agent:both", "bert", "-", "2026-03-14T12:10:00Z", "open", "0", "0", "0"},
		{"agent:both", "bert", "-", "2026-03-14T12:02:00Z", "2026-03-14T12:08:00Z", "idle", "1", "0", "1"},
		{"agent:both", "anna", `a\u{1B}[2J`, "2026-03-14T12:01:00Z", "2026-03-14T12:07:00Z", "lost", "1", "1", "0"},
	}
	if !reflect.DeepEqual(rows, want) {
		t.Errorf("got %s", got)
	}
	if got := succeed(t, strings.Fields("audit sessions --until 2026-03-14T12:02:00Z -c config.yaml")...); strings.Contains(got, "bert") || !strings.Contains(got, "anna") {
		t.Errorf("got %s", got)
	}
	show := succeed(t, strings.Fields("audit show agent:both -c config.yaml")...)
	for _, want := range []string{"Session   agent:both\n", `"a\x1b[2J"`, "\nscale  op-1\n", "sends       patch v1/pods, cluster c, Audit-ID op-1.1", "code 200 for patch v1/pods", "several callers"} {
		if !strings.Contains(show, want) {
			t.Errorf("%q is not in %s", want, show)
		}
	}
}

// What was taken out does not keep the log from being as it was signed, so verify says
// it, and whether the configuration would have; it says where nothing is anchored, too.
func TestVerifyTellsOfRetention(t *testing.T) {
	store := logged(t, 9)
	verify := func(from int64, warning string) {
		t.Helper()
		out, errOut, code := execute(strings.Fields("audit verify -c config.yaml")...)
		if code != 0 || !strings.Contains(out, "The log is as it was signed.") || !strings.Contains(errOut, warning) {
			t.Fatalf("exit %d, %s, %s", code, out, errOut)
		}
		if told := strings.Contains(out, fmt.Sprintf("by retention, payloads before record 8 and records before %d, as record 10 of", from)); told != (from > 0) {
			t.Errorf("got %s", out)
		}
	}
	socket(t, store)
	verify(0, "is not there: a log that was put back")
	if err := os.WriteFile("data/checkpoints", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	verify(0, "is empty: a log that was put back")
	edge, err := store.ReadHashes(audit.EdgeIndexes(4))
	if err != nil {
		t.Fatal(err)
	}
	pruned := &audit.Pruned{PayloadsBefore: 8, RecordsBefore: 5, Edge: edge}
	r := audit.Record{V: audit.Version, ID: "pruned", Time: time.Now().UTC(), Type: audit.LogPruned, Outcome: audit.Success, Pruned: pruned}
	if err := store.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{{Record: r}}}); err != nil {
		t.Fatal(err)
	}
	verify(5, "somebody has removed them")

	succeed(t, strings.Fields("audit export --checkpoint signed -c config.yaml")...)
	export := succeed(t, strings.Fields("audit export -c config.yaml")...)
	if err := os.WriteFile("export", []byte(export), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := succeed(t, strings.Fields("audit verify export --checkpoint signed --key data/audit.pub")...); !strings.Contains(out, "records before 5, as record 10 of") {
		t.Errorf("got %s", out)
	}

	keeps := settingsOf("p") + "audit:\n  retention: {payloads: 24h, records: 48h}\n"
	if err := os.WriteFile("config.yaml", []byte(keeps), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, _ := execute(strings.Fields("audit verify -c config.yaml")...); strings.Contains(errOut, "removed") {
		t.Errorf("got %s", errOut)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// A record that was added later says so wherever it is read; what the server writes of
// itself says what it is about.
func TestRecordsAsTheyAreRead(t *testing.T) {
	store := logged(t, 0)
	defer store.Close()
	for _, r := range []audit.Record{
		{ID: "1", Type: audit.ExecOutcome, Op: "op-1", Outcome: audit.Success, Imported: &audit.Imported{By: "bea (local:7)"}},
		{ID: "2", Type: audit.ClusterSeen, Cluster: &audit.Cluster{Name: "production", UID: "0198"}},
		{ID: "3", Type: audit.SessionEnded, End: &audit.SessionEnd{Reason: "idle"}},
		{ID: "4", Type: audit.LogPruned, Pruned: &audit.Pruned{PayloadsBefore: 2}},
		{ID: "5", Type: audit.LogCheckpoint, Checkpoint: &audit.Anchored{Size: 1, Note: "a note", Failed: []string{"witness w: it does not answer"}}},
	} {
		r.V, r.Time = audit.Version, time.Now().UTC()
		if err := store.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{{Record: r}}}); err != nil {
			t.Fatal(err)
		}
	}
	socket(t, store)
	found := succeed(t, strings.Fields("audit search -c config.yaml")...)
	for _, want := range []string{
		"exec.outcome, imported by bea (local:7)", "cluster.seen production: 0198", "session.ended idle", "log.pruned payloads before record 2",
		"log.checkpoint of 1 records in nothing; not in witness w: it does not answer",
	} {
		if !strings.Contains(found, want) {
			t.Errorf("%q is not in %s", want, found)
		}
	}
	if shown := succeed(t, strings.Fields("audit show op-1 -c config.yaml")...); !strings.Contains(shown, "imported    by bea (local:7) at 0001-01-01T00:00:00Z") {
		t.Errorf("got %s", shown)
	}
}

// Retention takes out what is older than the configuration says, at once, with a record of
// it in the same commit.
func TestRetain(t *testing.T) {
	store := logged(t, 0)
	defer store.Close()
	for i, age := range []time.Duration{72 * time.Hour, 36 * time.Hour, 0} {
		payload := fmt.Appendf(nil, `{"payload":%d}`, i+1)
		sum := sha256.Sum256(payload)
		r := audit.Record{V: audit.Version, ID: fmt.Sprint(i), Time: time.Now().Add(-age).UTC(), Type: audit.ExecOutcome, Outcome: audit.Success, Payload: &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(payload)}}
		if err := store.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{{Record: r, Payload: payload}}}); err != nil {
			t.Fatal(err)
		}
	}
	set, err := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte(oneRule)}}, policy.Known{Approvers: []string{"sre"}})
	if err != nil {
		t.Fatal(err)
	}
	g := &gate.Gate{Store: store, Policy: func() *policy.Set { return set }, Now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	committed := store.Committed()
	go func() {
		retain(ctx, g, 24*time.Hour, 48*time.Hour, slog.New(slog.DiscardHandler))
		close(ended)
	}()
	<-committed
	cancel()
	<-ended
	var left []uint64
	if err := store.Records(1, func(seq uint64, _ []byte) error { left = append(left, seq); return nil }); err != nil || !reflect.DeepEqual(left, []uint64{2, 3, 4}) {
		t.Errorf("left are the records %v, %v", left, err)
	}
	for seq, kept := range map[uint64]bool{1: false, 2: false, 3: true} {
		if _, err := store.Payload(seq); (err == nil) != kept {
			t.Errorf("payload %d: %v", seq, err)
		}
	}
	key, err := store.Verifier()
	if err != nil {
		t.Fatal(err)
	}
	report, err := store.Verify(t.Context(), key, nil)
	if err != nil || len(report.Findings) > 0 || report.Retention == nil || report.Retention.PayloadsBefore != 3 || report.Retention.RecordsBefore != 2 || report.Retention.Seq != 4 {
		t.Errorf("%+v, %v", report, err)
	}
}
