// Package storagetest is what every implementation of gate.Store has to do, as
// tests: the rules written at gate.Store, and that what was acknowledged is
// there after a restart, whole, in order and byte for byte.
//
// It owns no implementation, and knows nothing of files.
package storagetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
)

// Store is what the tests need: gate's port, and a way to read the log.
type Store interface {
	gate.Store
	// Records calls f with every record from seq on, in order, until f fails.
	Records(from uint64, f func(seq uint64, record []byte) error) error
}

// Run runs every test. fresh is called once for each and gives a function that
// opens a new, empty store; called again, that function closes the store and
// opens it anew, as after a restart.
func Run(t *testing.T, fresh func(t *testing.T) (open func() Store)) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, open func() Store)
	}{
		{"Records", testRecords},
		{"ManyRecords", testManyRecords},
		{"Operations", testOperations},
		{"OpenOperations", testOpenOperations},
		{"NewestOperations", testNewestOperations},
		{"Revisions", testRevisions},
		{"ConflictLeavesNothing", testConflictLeavesNothing},
		{"Questions", testQuestions},
		{"Grants", testGrants},
		{"Writers", testWriters},
		{"OneWins", testOneWins},
		{"CallerGone", testCallerGone},
		{"Numbers", testNumbers},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, fresh(t)) })
	}
}

var noon = time.Date(2026, 3, 14, 12, 0, 0, 123456789, time.UTC)

// entry is a record whose id says what it is.
func entry(format string, args ...any) gate.Entry {
	return gate.Entry{Record: audit.Record{V: audit.Version, ID: fmt.Sprintf(format, args...), Time: noon, Type: audit.ToolIntent, Node: "<test> & \u2028"}}
}

func operation(id string, state approvals.State, revision uint64) approvals.Operation {
	return approvals.Operation{ID: id, State: state, Revision: revision, Created: noon, Updated: noon}
}

func commit(t *testing.T, s Store, b gate.Batch) {
	t.Helper()
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// restarted gives the store as it is, and then as it is after a restart.
func restarted(s Store, open func() Store) iter.Seq[Store] {
	return func(yield func(Store) bool) {
		if yield(s) {
			yield(open())
		}
	}
}

// ids are those of all records, after a check that their numbers are 1..n and
// stand in them.
func ids(t *testing.T, s Store) []string {
	t.Helper()
	var out []string
	err := s.Records(1, func(seq uint64, data []byte) error {
		var r audit.Record
		if err := json.Unmarshal(data, &r); err != nil {
			return err
		}
		if out = append(out, r.ID); seq != uint64(len(out)) || r.Seq != seq {
			return fmt.Errorf("record %d has number %d, and says %d", len(out), seq, r.Seq)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantIDs(t *testing.T, s Store, want ...string) {
	t.Helper()
	if got := ids(t, s); !slices.Equal(got, want) {
		t.Errorf("records %q; want %q", got, want)
	}
}

// What is read is the record's JSON, byte for byte, before a restart and after.
func testRecords(t *testing.T, open func() Store) {
	s := open()
	wantIDs(t, s)
	full := entry("full")
	full.Record.Principal = &action.Principal{Issuer: "https://idp", Subject: "1", Groups: []string{}}
	full.Record.Tool = &audit.Tool{Name: "t", Args: map[string]any{"b": 1, "a": []any{nil, "<x>"}}}
	full.Payload = []byte("payload")
	commit(t, s, gate.Batch{Entries: []gate.Entry{entry("one"), full}})
	commit(t, s, gate.Batch{})
	commit(t, s, gate.Batch{Entries: []gate.Entry{entry("three")}})

	for s := range restarted(s, open) {
		wantIDs(t, s, "one", "full", "three")
		want := full.Record
		want.Seq = 2
		line, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		stop := errors.New("stop")
		calls := 0
		err = s.Records(2, func(seq uint64, data []byte) error {
			if calls++; seq != 2 || !bytes.Equal(data, line) {
				t.Errorf("record %d is %s; want %s", seq, data, line)
			}
			return stop
		})
		if !errors.Is(err, stop) || calls != 1 {
			t.Errorf("%d calls, %v; the caller's error ends it", calls, err)
		}
		if err := s.Records(4, func(uint64, []byte) error { return stop }); err != nil {
			t.Errorf("there is a record behind the last: %v", err)
		}
	}
}

// More records than an implementation is likely to read at once.
func testManyRecords(t *testing.T, open func() Store) {
	s := open()
	const n = 2500
	var want []string
	for len(want) < n {
		var b gate.Batch
		for range 250 {
			b.Entries = append(b.Entries, entry("r%d", len(want)))
			want = append(want, b.Entries[len(b.Entries)-1].Record.ID)
		}
		commit(t, s, b)
	}
	wantIDs(t, s, want...)
	count := 0
	if err := s.Records(n-7, func(uint64, []byte) error { count++; return nil }); err != nil || count != 8 {
		t.Errorf("%d records from the eighth last on, %v", count, err)
	}
}

func testOperations(t *testing.T, open func() Store) {
	s := open()
	if op, err := s.Operation("none"); !errors.Is(err, gate.ErrNotFound) {
		t.Errorf("%+v, %v; want ErrNotFound", op, err)
	}
	full := approvals.Operation{
		ID: "full", State: approvals.PendingApproval, Revision: 1, Session: "s", Tool: "t", Args: map[string]any{"a": "b"}, AgentReason: "why",
		Principal:  action.Principal{Issuer: "https://idp", Subject: "1", Username: "u", Groups: []string{"g"}, Client: "c", OnBehalfOf: "o"},
		Plan:       action.Plan{Tool: "t", Actions: []action.Action{{Cluster: "c", Verb: "patch", Body: map[string]any{"a": []any{"b", nil, true}}, Options: action.Options{Force: true}}}},
		PlanDigest: "p", PreviewDigest: "d", UIDs: []string{"u"}, Diffs: [][]action.Change{{{Op: "replace", Path: "/a", Old: "x", New: "y"}}},
		Requirements: []approvals.Requirement{{Rule: "r", Approvers: []string{"sre"}, Count: 2, Expires: time.Minute, ReasonRequired: true}},
		Votes:        []approvals.Vote{{Person: approvals.Person{ID: "1", Name: "n", Sets: []string{"sre"}, Accounts: []string{"local:n"}, Barred: "b"}, Ballot: approvals.Ballot{Approve: true, Reason: "ok", Grant: true}, Time: noon}},
		Rules:        []string{"r"}, Reason: "x", Created: noon, Updated: noon, Expires: noon.Add(time.Hour), Supersedes: "a", SupersededBy: "b", Done: 1, Result: "res", Evidence: "applied",
		Risks: []string{"x"}, Drift: []string{"y"}, Channels: []string{"C0123ABCD"}, GrantFor: time.Hour, Grant: "g",
	}
	empty := operation("empty", approvals.Denied, 1)
	commit(t, s, gate.Batch{Operations: []approvals.Operation{full, empty}})
	for s := range restarted(s, open) {
		for _, want := range []approvals.Operation{full, empty} {
			if got, err := s.Operation(want.ID); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
			}
		}
	}
}

// Open are those, and only those, that something may still happen to.
func testOpenOperations(t *testing.T, open func() Store) {
	s := open()
	states := []approvals.State{
		approvals.PendingApproval, approvals.Authorized, approvals.Executing, approvals.Unknown,
		approvals.Denied, approvals.Rejected, approvals.Expired, approvals.Cancelled, approvals.Stale,
		approvals.Succeeded, approvals.Failed, approvals.Partial, approvals.Reconciled,
	}
	var want []string
	for _, state := range states {
		commit(t, s, gate.Batch{Operations: []approvals.Operation{operation(string(state), state, 1)}})
		if state.Open() {
			want = append(want, string(state))
		}
	}
	wantOpen(t, s, want...)
	s = open()
	wantOpen(t, s, want...)
	commit(t, s, gate.Batch{Operations: []approvals.Operation{operation(want[0], approvals.Authorized, 2), operation(want[1], approvals.Cancelled, 2)}})
	wantOpen(t, s, append(want[2:], want[0])...)
}

// The newest come first, whatever their state, and no more than are wanted.
func testNewestOperations(t *testing.T, open func() Store) {
	s := open()
	commit(t, s, gate.Batch{Operations: []approvals.Operation{operation("op-2", approvals.Denied, 1), operation("op-1", approvals.PendingApproval, 1)}})
	commit(t, s, gate.Batch{Operations: []approvals.Operation{operation("op-3", approvals.Executing, 1)}})
	for s := range restarted(s, open) {
		for _, row := range []struct {
			most int
			want string
		}{{9, "op-3 op-2 op-1"}, {2, "op-3 op-2"}, {1, "op-3"}} {
			var got []string
			err := s.Operations(func(op approvals.Operation) bool {
				got = append(got, op.ID)
				return len(got) < row.most
			})
			if err != nil || strings.Join(got, " ") != row.want {
				t.Errorf("at most %d: %v, %v; want %s", row.most, got, err, row.want)
			}
		}
	}
}

func wantOpen(t *testing.T, s Store, want ...string) {
	t.Helper()
	ops, err := s.OpenOperations()
	var got []string
	for _, op := range ops {
		got = append(got, op.ID)
	}
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("open are %q, %v; want %q", got, err, want)
	}
}

// An operation is stored when its revision is one more than the stored one.
func testRevisions(t *testing.T, open func() Store) {
	s := open()
	for i, row := range []struct {
		revision uint64
		conflict bool
	}{
		{0, true}, {2, true}, {1, false}, {1, true}, {0, true}, {3, true}, {2, false}, {2, true}, {1, true}, {3, false},
	} {
		err := s.Commit(t.Context(), gate.Batch{Operations: []approvals.Operation{operation("op", approvals.PendingApproval, row.revision)}})
		if row.conflict != errors.Is(err, gate.ErrConflict) || !row.conflict && err != nil {
			t.Errorf("step %d, revision %d: %v; want a conflict: %v", i, row.revision, err, row.conflict)
		}
	}
	if op, err := open().Operation("op"); err != nil || op.Revision != 3 {
		t.Errorf("stored is %+v, %v", op, err)
	}
}

// A batch is stored whole or not at all, whichever part conflicts.
func testConflictLeavesNothing(t *testing.T, open func() Store) {
	s := open()
	commit(t, s, gate.Batch{
		Entries:    []gate.Entry{entry("first")},
		Operations: []approvals.Operation{operation("old", approvals.PendingApproval, 1)},
		Question:   &gate.Question{Key: "q", Op: "old"},
		Grants:     []approvals.Grant{{ID: "grant", Revision: 1}},
	})
	for name, b := range map[string]gate.Batch{
		"the second operation": {
			Operations: []approvals.Operation{operation("new", approvals.PendingApproval, 1), operation("old", approvals.Rejected, 1)},
			Question:   &gate.Question{Key: "q2", Op: "new"},
		},
		"a grant": {
			Operations: []approvals.Operation{operation("new", approvals.PendingApproval, 1), operation("old", approvals.Rejected, 2)},
			Question:   &gate.Question{Key: "q", Op: "new", Was: "old"},
			Grants:     []approvals.Grant{{ID: "new", Revision: 1}, {ID: "grant", Revision: 3}},
		},
		"an operation beside a grant": {
			Operations: []approvals.Operation{operation("old", approvals.Rejected, 1)},
			Grants:     []approvals.Grant{{ID: "new", Revision: 1}, {ID: "grant", Revision: 2}},
		},
		"the question": {
			Operations: []approvals.Operation{operation("new", approvals.PendingApproval, 1), operation("old", approvals.Rejected, 2)},
			Question:   &gate.Question{Key: "q", Op: "new", Was: "other"},
		},
		"the question, thought to be new": {
			Operations: []approvals.Operation{operation("new", approvals.PendingApproval, 1)},
			Question:   &gate.Question{Key: "q", Op: "new"},
		},
	} {
		b.Entries = []gate.Entry{entry("lost"), entry("lost too")}
		if err := s.Commit(t.Context(), b); !errors.Is(err, gate.ErrConflict) {
			t.Errorf("%s: %v; want ErrConflict", name, err)
		}
	}
	for s := range restarted(s, open) {
		wantIDs(t, s, "first")
		wantOpen(t, s, "old")
		if _, err := s.Operation("new"); !errors.Is(err, gate.ErrNotFound) {
			t.Errorf("new operation: %v", err)
		}
		if op, err := s.Operation("old"); err != nil || op.State != approvals.PendingApproval {
			t.Errorf("old operation: %+v, %v", op, err)
		}
		wantQuestion(t, s, "q", "old")
		wantQuestion(t, s, "q2", "")
		if grants, err := s.Grants(); err != nil || len(grants) != 1 || grants[0].ID != "grant" || grants[0].Revision != 1 {
			t.Errorf("grants %+v, %v", grants, err)
		}
	}
}

func wantQuestion(t *testing.T, s Store, key, want string) {
	t.Helper()
	if op, err := s.Question(key); err != nil || op != want {
		t.Errorf("question %s is asked as %q, %v; want %q", key, op, err, want)
	}
}

func testQuestions(t *testing.T, open func() Store) {
	s := open()
	ask := func(key, op, was string) error {
		return s.Commit(t.Context(), gate.Batch{Question: &gate.Question{Key: key, Op: op, Was: was}})
	}
	wantQuestion(t, s, "a", "")
	for i, row := range []struct {
		key, op, was string
		conflict     bool
	}{
		{"a", "1", "x", true}, {"a", "1", "", false}, {"b", "2", "", false}, {"a", "3", "", true}, {"a", "3", "2", true}, {"a", "3", "1", false}, {"a", "3", "3", false},
	} {
		if err := ask(row.key, row.op, row.was); row.conflict != errors.Is(err, gate.ErrConflict) || !row.conflict && err != nil {
			t.Errorf("step %d: %v; want a conflict: %v", i, err, row.conflict)
		}
	}
	for s := range restarted(s, open) {
		wantQuestion(t, s, "a", "3")
		wantQuestion(t, s, "b", "2")
		wantQuestion(t, s, "c", "")
	}
}

// A grant is stored when its revision is one more than the stored one, and comes
// back whole.
func testGrants(t *testing.T, open func() Store) {
	s := open()
	if grants, err := s.Grants(); err != nil || len(grants) != 0 {
		t.Errorf("at first there are %+v, %v", grants, err)
	}
	g := approvals.Grant{
		ID: "g", Op: "op", Principal: action.Principal{Issuer: "https://idp", Subject: "1", Username: "u", Groups: []string{"g"}, Client: "c", OnBehalfOf: "o"},
		Tool:  "t",
		Kinds: []approvals.Kind{{Cluster: "c", Namespace: "n", Verb: "patch", Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments"}, Subresource: "scale", Patch: action.MergePatch, Fields: []string{"/a", "-/b"}}},
		Risks: []string{"r"}, Votes: []approvals.Vote{{Person: approvals.Person{ID: "1", Name: "n", Sets: []string{"sre"}}, Ballot: approvals.Ballot{Approve: true, Grant: true}, Time: noon}},
		Created: noon, Expires: noon.Add(time.Hour), Uses: 3, Revoked: "n (1)",
	}
	for i, row := range []struct {
		revision uint64
		conflict bool
	}{
		{0, true}, {2, true}, {1, false}, {1, true}, {3, true}, {2, false}, {2, true},
	} {
		g.Revision = row.revision
		err := s.Commit(t.Context(), gate.Batch{Grants: []approvals.Grant{g}})
		if row.conflict != errors.Is(err, gate.ErrConflict) || !row.conflict && err != nil {
			t.Errorf("step %d, revision %d: %v; want a conflict: %v", i, row.revision, err, row.conflict)
		}
	}
	g.Revision = 2
	commit(t, s, gate.Batch{Grants: []approvals.Grant{{ID: "other", Revision: 1}}})
	for s := range restarted(s, open) {
		grants, err := s.Grants()
		slices.SortFunc(grants, func(a, b approvals.Grant) int { return strings.Compare(a.ID, b.ID) })
		if err != nil || len(grants) != 2 || !reflect.DeepEqual(grants[0], g) || grants[1].ID != "other" {
			t.Errorf("%v\ngot  %+v\nwant %+v", err, grants, g)
		}
	}
}

// Many writers at once: each learns its own outcome, whatever the others of the
// same moment learn; what was acknowledged is there, each batch in one piece,
// and nothing else is.
func testWriters(t *testing.T, open func() Store) {
	s := open()
	commit(t, s, gate.Batch{Operations: []approvals.Operation{operation("taken", approvals.PendingApproval, 1)}})
	const writers, batches = 32, 12
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range batches {
				id := fmt.Sprintf("%d-%d", w, i)
				b := gate.Batch{
					Entries:    []gate.Entry{entry("%s a", id), entry("%s b", id), entry("%s c", id)},
					Operations: []approvals.Operation{operation(id, approvals.PendingApproval, 1)},
				}
				conflict := (w+i)%3 == 0
				if conflict {
					b.Operations = append(b.Operations, operation("taken", approvals.PendingApproval, 1))
				}
				if err := s.Commit(t.Context(), b); conflict != errors.Is(err, gate.ErrConflict) || !conflict && err != nil {
					t.Errorf("batch %s: %v; want a conflict: %v", id, err, conflict)
				}
			}
		})
	}
	wg.Wait()

	for s := range restarted(s, open) {
		records := ids(t, s)
		at := map[string]int{}
		for i, id := range records {
			if _, twice := at[id]; twice {
				t.Errorf("record %s is there twice", id)
			}
			at[id] = i
		}
		stored := 0
		for w := range writers {
			last := -1
			for i := range batches {
				id := fmt.Sprintf("%d-%d", w, i)
				a, there := at[id+" a"]
				if _, err := s.Operation(id); there != (err == nil) || there == ((w+i)%3 == 0) {
					t.Errorf("batch %s: records %v, operation %v", id, there, err)
				}
				if !there {
					continue
				}
				stored++
				if at[id+" b"] != a+1 || at[id+" c"] != a+2 {
					t.Errorf("batch %s is not in one piece: %d, %d, %d", id, a, at[id+" b"], at[id+" c"])
				}
				if a < last {
					t.Errorf("batch %s stands before the writer's earlier one", id)
				}
				last = a
			}
		}
		if len(records) != 3*stored {
			t.Errorf("%d records of %d batches", len(records), stored)
		}
	}
}

// Of two who move the same operation, or ask the same question, one wins.
func testOneWins(t *testing.T, open func() Store) {
	s := open()
	commit(t, s, gate.Batch{Operations: []approvals.Operation{operation("op", approvals.PendingApproval, 1)}})
	const racers = 16
	for round := range uint64(5) {
		var wg sync.WaitGroup
		outcomes := make(chan error, 2*racers)
		for i := range racers {
			wg.Go(func() {
				outcomes <- s.Commit(t.Context(), gate.Batch{
					Entries:    []gate.Entry{entry("move %d by %d", round, i)},
					Operations: []approvals.Operation{operation("op", approvals.PendingApproval, round+2)},
				})
			})
			wg.Go(func() {
				outcomes <- s.Commit(t.Context(), gate.Batch{
					Entries:  []gate.Entry{entry("ask %d by %d", round, i)},
					Question: &gate.Question{Key: fmt.Sprintf("q%d", round), Op: fmt.Sprint(i)},
				})
			})
		}
		wg.Wait()
		close(outcomes)
		won := 0
		for err := range outcomes {
			if err == nil {
				won++
			} else if !errors.Is(err, gate.ErrConflict) {
				t.Fatal(err)
			}
		}
		if won != 2 {
			t.Errorf("round %d: %d won; want one move and one question", round, won)
		}
	}
	var moves, asks int
	for _, id := range ids(t, s) {
		if strings.HasPrefix(id, "move") {
			moves++
		} else {
			asks++
		}
	}
	if op, err := s.Operation("op"); err != nil || op.Revision != 6 || moves != 5 || asks != 5 {
		t.Errorf("%+v, %v, %d moves and %d questions recorded", op, err, moves, asks)
	}
}

// A caller who has gone may be told that nothing was stored, but only when
// nothing was.
func testCallerGone(t *testing.T, open func() Store) {
	s := open()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var want []string
	for i := range 50 {
		if err := s.Commit(ctx, gate.Batch{Entries: []gate.Entry{entry("r%d", i)}}); err == nil {
			want = append(want, fmt.Sprintf("r%d", i))
		} else if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	wantIDs(t, s, want...)
	commit(t, s, gate.Batch{Entries: []gate.Entry{entry("after")}}) // it is no failure
	wantIDs(t, open(), append(want, "after")...)
}

// Numbers of a body come back as they were decoded: what is sent after a
// restart is what was approved before it.
func testNumbers(t *testing.T, open func() Store) {
	s := open()
	op := operation("op", approvals.PendingApproval, 1)
	op.Plan.Actions = []action.Action{{Body: map[string]any{
		"big": int64(9007199254740993), "most": int64(9223372036854775807), "least": int64(-9223372036854775808),
		"whole": int64(3), "fraction": 1.5, "large": 1e300, "list": []any{int64(9007199254740993), nil, "9007199254740993"},
	}}}
	before, err := op.Plan.Digest(nil)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, gate.Batch{Operations: []approvals.Operation{op}})
	for s := range restarted(s, open) {
		loaded, err := s.Operation("op")
		if err != nil || !reflect.DeepEqual(loaded.Plan, op.Plan) {
			t.Errorf("%v\ngot  %+v\nwant %+v", err, loaded.Plan, op.Plan)
		}
		if after, err := loaded.Plan.Digest(nil); err != nil || after != before {
			t.Errorf("the plan's digest is %s, %v; it was %s", after, err, before)
		}
	}
}
