package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
	"countersign/policy"
)

// memory is a store of what these tests put there; of the rest of the port there is nothing.
type memory struct {
	gate.Store
	mu      sync.Mutex
	ops     map[string]approvals.Operation
	held    map[string]approvals.Grant
	records []audit.Record
}

func (m *memory) Commit(_ context.Context, b gate.Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, op := range b.Operations {
		if m.ops[op.ID].Revision+1 != op.Revision {
			return gate.ErrConflict
		}
		m.ops[op.ID] = op
	}
	for _, g := range b.Grants {
		m.held[g.ID] = g
	}
	for _, e := range b.Entries {
		m.records = append(m.records, e.Record)
	}
	return nil
}

func (m *memory) Operation(id string) (approvals.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if op, ok := m.ops[id]; ok {
		return op, nil
	}
	return approvals.Operation{}, gate.ErrNotFound
}

func (m *memory) OpenOperations() (open []approvals.Operation, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for op := range maps.Values(m.ops) {
		if op.State.Open() {
			open = append(open, op)
		}
	}
	return open, nil
}

func (m *memory) Grants() ([]approvals.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.held)), nil
}

func (m *memory) Locks() ([]approvals.Lock, error) { return nil, nil }

// served is a server at a socket, with questions that wait for whoever runs the
// test, or for somebody else.
type served struct {
	*Client
	socket string
	store  *memory
	people *approvals.Directory
	me     string
}

func serve(t *testing.T) *served {
	t.Helper()
	who, err := user.Current()
	if err != nil {
		t.Skip(err) // without a name there is nobody to be in a set
	}
	body := map[string]any{"data": map[string]any{"password": "hunter2"}}
	op := func(id, set string, age time.Duration) approvals.Operation {
		return approvals.Operation{
			ID: id, State: approvals.PendingApproval, Revision: 1, Created: time.Now().Add(-age), Expires: time.Now().Add(time.Hour), Tool: "gone",
			Principal: action.Principal{Issuer: "https://idp", Subject: "s", Username: "devin"},
			Plan: action.Plan{Actions: []action.Action{{
				Cluster: "c", Verb: action.Patch, Namespace: "shop", Name: "a", Body: body, Resource: action.Resource{Version: "v1", Resource: "configmaps", Namespaced: true},
			}}},
			Diffs:        [][]action.Change{{{Op: "replace", Path: "/data/a", Old: "1", New: "2"}}},
			Requirements: []approvals.Requirement{{Rule: "r", Approvers: []string{set}, Count: 1}}, GrantFor: time.Minute,
		}
	}
	s := &served{
		socket: filepath.Join(t.TempDir(), "s"), me: who.Username,
		store: &memory{ops: map[string]approvals.Operation{}, held: map[string]approvals.Grant{}},
		people: &approvals.Directory{
			Sets:   map[string][]string{"sre": {"local:" + who.Username}, "all": {"local:*"}, "others": {"local:somebody-else"}},
			People: [][]string{{"local:" + who.Username, "principal:me@example.com"}},
		},
	}
	for _, o := range []approvals.Operation{op("new", "sre", 0), op("old", "all", time.Minute), op("others", "others", time.Second)} {
		s.store.ops[o.ID] = o
	}
	mine := op("mine", "sre", time.Hour)
	mine.Principal.OnBehalfOf = "Me@example.com"
	s.store.ops["mine"] = mine
	single := op("single", "sre", time.Hour)
	single.GrantFor = 0
	s.store.ops["single"] = single

	set, err := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec: {rules: [{name: r, effect: allow}]}\n")}}, policy.Known{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	g := &gate.Gate{Store: s.store, Policy: func() *policy.Set { return set }, Log: log, Now: time.Now}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := (&Server{Gate: g, Store: s.store, People: s.people, Log: log}).HTTP()
	go server.Serve(listener)
	t.Cleanup(func() {
		server.Close()
		g.Stop(context.Background())
	})
	s.Client = NewClient(s.socket)
	return s
}

// post sends a body as it is.
func (s *served) post(t *testing.T, path string, body io.Reader) (status int, text string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://admin"+path, "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data))
}

// Who votes is who the kernel says, and nothing that is sent.
func TestVote(t *testing.T) {
	for _, row := range []struct {
		name, op, body string
		status         int
		text           string // what the answer has
	}{
		{"yes", "new", `{"approve":true}`, 200, `"state":"AUTHORIZED"`},
		{"yes, as whoever may open the socket", "old", `{"approve":true}`, 200, `"state":"AUTHORIZED"`},
		{"no", "new", `{"approve":false,"reason":"not now"}`, 200, `"state":"REJECTED"`},
		{"a kind", "new", `{"approve":true,"grant":true}`, 200, `"grant":true`},
		{"a kind where there is none", "single", `{"approve":true,"grant":true}`, 400, "only this one can be approved"},
		{"no reason", "new", `{"approve":false}`, 400, "reason required"},
		{"a long reason", "new", `{"approve":true,"reason":"` + strings.Repeat("x", 1001) + `"}`, 400, "reason too long"},
		{"not in the set", "others", `{"approve":true}`, 403, "not an approver"},
		{"for oneself", "mine", `{"approve":true}`, 403, "own request"},
		{"no such operation", "none", `{"approve":true}`, 404, "not found"},
		{"somebody else's name", "others", `{"approve":true,"person":{"id":"local:0","name":"somebody-else","sets":["others"]}}`, 400, `unknown field "person"`},
		{"sets of one's own", "others", `{"approve":true,"sets":["others"]}`, 400, `unknown field "sets"`},
		{"too much", "new", `{"approve":true,"reason":"` + strings.Repeat("x", maxVote) + `"}`, 400, "too large"},
		{"nothing", "new", ``, 400, "reading the vote"},
		{"no object", "new", `[true]`, 400, "reading the vote"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := serve(t)
			status, text := s.post(t, "/v1/operations/"+row.op+"/vote", strings.NewReader(row.body))
			if status != row.status || !strings.Contains(text, row.text) {
				t.Errorf("%d %s; want %d %s", status, text, row.status, row.text)
			}
			op, err := s.store.Operation(row.op)
			if counted := err == nil && len(op.Votes) == 1; counted != (row.status == 200) {
				t.Errorf("it counts: %v; now it is %+v", counted, op)
			}
			if row.status == 200 {
				if p := op.Votes[0].Person; p.Name != s.me || !strings.HasPrefix(p.ID, "local:") || slices.Contains(p.Accounts, "local:*") || !slices.Contains(p.Accounts, "principal:me@example.com") {
					t.Errorf("the vote is by %+v", p)
				}
			}
			if strings.Contains(text, "hunter2") {
				t.Error("what would be sent is in the answer")
			}
		})
	}
}

// A vote that comes too late is told so, and by whom it was decided.
func TestVoteTooLate(t *testing.T) {
	s := serve(t)
	if _, err := s.Vote(t.Context(), "new", approvals.Ballot{Approve: true}); err != nil {
		t.Fatal(err)
	}
	status, text := s.post(t, "/v1/operations/new/vote", strings.NewReader(`{"approve":false,"reason":"no"}`))
	if status != http.StatusConflict || !strings.Contains(text, "not waiting for approval") {
		t.Errorf("%d %s", status, text)
	}
}

// What is open comes oldest first, and never with what would be sent.
func TestList(t *testing.T) {
	s := serve(t)
	ops, err := s.Operations(t.Context())
	if err != nil || len(ops) != 5 || ops[4].ID != "new" || ops[3].ID != "others" || ops[2].ID != "old" {
		t.Fatalf("%+v, %v", ops, err)
	}
	one, err := s.Operation(t.Context(), "new")
	if err != nil || one.Plan.Actions[0].Body != nil || ops[4].Plan.Actions[0].Body != nil || one.Plan.Actions[0].Name != "a" {
		t.Errorf("%+v, %v", one, err)
	}
	if op, err := s.store.Operation("new"); err != nil || op.Plan.Actions[0].Body == nil {
		t.Error("it is taken from the store as well")
	}
}

func TestGrants(t *testing.T) {
	s := serve(t)
	if grants, err := s.Grants(t.Context()); err != nil || len(grants) != 0 {
		t.Fatalf("%+v, %v", grants, err)
	}
	if _, err := s.Vote(t.Context(), "old", approvals.Ballot{Approve: true, Grant: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Vote(t.Context(), "new", approvals.Ballot{Approve: true, Grant: true}); err != nil {
		t.Fatal(err)
	}
	grants, err := s.Grants(t.Context())
	if err != nil || len(grants) != 2 || grants[0].Op != "old" || grants[1].Op != "new" || grants[0].Kinds[0].Fields[0] != "/data/a" {
		t.Fatalf("%+v, %v", grants, err)
	}
	id := grants[0].ID
	for _, row := range []struct {
		name, id, body string
		status         int
		text           string
	}{
		{"no such grant", "none", `{}`, 404, "countersign grants list"},
		{"an operation", "old", `{}`, 404, "not found"},
		{"an unknown field", id, `{"reason":"x","by":"somebody else"}`, 400, `unknown field "by"`},
		{"too much", id, `{"reason":"` + strings.Repeat("x", maxVote) + `"}`, 400, "too large"},
		{"nothing", id, ``, 400, "reading the reason"},
	} {
		if status, text := s.post(t, "/v1/grants/"+row.id+"/revoke", strings.NewReader(row.body)); status != row.status || !strings.Contains(text, row.text) {
			t.Errorf("%s: %d %s", row.name, status, text)
		}
		if g := s.store.held[id]; g.Revoked != "" {
			t.Fatalf("%s: it is taken back: %+v", row.name, g)
		}
	}
	got, err := s.Revoke(t.Context(), id, "over")
	if err != nil || !strings.HasPrefix(got.Revoked, s.me+" (local:") || s.store.held[id].Revoked != got.Revoked || s.store.held[grants[1].ID].Revoked != "" {
		t.Errorf("%+v, %v", got, err)
	}
	last := s.store.records[len(s.store.records)-1]
	if last.Type != audit.GrantRevoked || last.Approval.Reason != "over" || last.Approval.Grant != id {
		t.Errorf("on record is %+v", last)
	}
}

// Each refusal has a status of its own, for whoever speaks HTTP.
func TestFail(t *testing.T) {
	for err, want := range map[error]int{
		gate.ErrNotFound: 404, gate.ErrFull: 507, approvals.ErrNotApprover: 403, approvals.ErrSelfApproval: 403, approvals.ErrBarred: 403,
		approvals.ErrNotPending: 409, approvals.ErrVoted: 409, approvals.ErrReason: 400, approvals.ErrNotGrantable: 400, errors.New("disk"): 500,
	} {
		w := httptest.NewRecorder()
		(&Server{Log: slog.New(slog.DiscardHandler)}).fail(w, err)
		if w.Code != want {
			t.Errorf("%v: %d; want %d", err, w.Code, want)
		}
	}
}
