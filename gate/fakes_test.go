package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// memory is a Store with the rules of the port, and faults on demand.
type memory struct {
	mu        sync.Mutex
	entries   []Entry
	ops       map[string]approvals.Operation
	questions map[string]string
	grants    map[string]approvals.Grant
	locks     []approvals.Lock
	poisoned  error
	changed   chan struct{} // closed at the next commit
	// fault, when set, decides about a batch before anything else does.
	fault func(Batch) fault
	// meanwhile, when set, is what somebody else does right before a batch is stored.
	meanwhile func(Batch)
}

// fault is what a broken disk does to a commit.
type fault int

const (
	none fault = iota
	lost       // an error, and nothing was stored
	kept       // an error, and all was stored
	full       // no room, and nothing was stored; later there may be
)

var errDisk = errors.New("disk full")

func (m *memory) Commit(_ context.Context, b Batch) error {
	if m.meanwhile != nil {
		m.meanwhile(b)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.poisoned != nil {
		return m.poisoned
	}
	var broken fault
	if m.fault != nil {
		broken = m.fault(b)
	}
	if broken == full {
		return ErrFull
	}
	if broken == lost {
		m.poisoned = errDisk
		return errDisk
	}
	for _, op := range b.Operations {
		if m.ops[op.ID].Revision+1 != op.Revision {
			return fmt.Errorf("%w: operation %s", ErrConflict, op.ID)
		}
	}
	for _, grant := range b.Grants {
		if m.grants[grant.ID].Revision+1 != grant.Revision {
			return fmt.Errorf("%w: grant %s", ErrConflict, grant.ID)
		}
	}
	if q := b.Question; q != nil {
		if m.questions[q.Key] != q.Was {
			return fmt.Errorf("%w: question", ErrConflict)
		}
		m.questions[q.Key] = q.Op
	}
	for _, op := range b.Operations {
		m.ops[op.ID] = op
	}
	for _, grant := range b.Grants {
		m.grants[grant.ID] = grant
	}
	for _, id := range b.EndedGrants {
		delete(m.grants, id)
	}
	m.locks = slices.DeleteFunc(append(m.locks, b.Locks...), func(l approvals.Lock) bool { return slices.Contains(b.Unlocks, l.ID) })
	m.entries = append(m.entries, b.Entries...)
	if broken == kept {
		m.poisoned = errDisk
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return m.poisoned
}

// until waits for commits until something holds.
func (m *memory) until(t *testing.T, holds func() bool, why func() string) {
	t.Helper()
	deadline := time.After(30 * time.Second) // only when the test fails
	for {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal(why())
		}
	}
}

func (m *memory) Operation(id string) (approvals.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	op, ok := m.ops[id]
	if !ok {
		return op, ErrNotFound
	}
	return op, nil
}

func (m *memory) Grants() ([]approvals.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.grants)), nil
}

func (m *memory) Prunable(time.Time, time.Time) (audit.Pruned, error) { return audit.Pruned{}, nil }

func (m *memory) Locks() ([]approvals.Lock, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.locks), nil
}

func (m *memory) Operations(f func(approvals.Operation) bool) error {
	m.mu.Lock()
	ops := maps.Clone(m.ops)
	m.mu.Unlock()
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(ops))) {
		if !f(ops[id]) {
			break
		}
	}
	return nil
}

func (m *memory) OpenOperations() ([]approvals.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(func(yield func(approvals.Operation) bool) {
		for _, op := range m.ops {
			if op.State.Open() && !yield(op) {
				return
			}
		}
	}), nil
}

func (m *memory) Question(key string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.questions[key], nil
}

// all are the records so far.
func (m *memory) all() []audit.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]audit.Record, len(m.entries))
	for i, e := range m.entries {
		out[i] = e.Record
	}
	return out
}

func (m *memory) count(recordType string) int {
	n := 0
	for _, r := range m.all() {
		if r.Type == recordType {
			n++
		}
	}
	return n
}

// fakeCluster holds objects and merges patches into them, as far as these tests go.
type fakeCluster struct {
	t              *testing.T
	store          *memory
	mu             sync.Mutex
	objects        map[string]map[string]any
	sent           []string // what was executed, as Action.String
	looked         int      // how often it was asked anything else
	namespacesRead []string
	// refuse, when set, fails a request; effect says whether it is done all the same.
	refuse func(a action.Action) (err error, effect bool)
	// unreachable, when set, fails every preview, unreadable every look at a Namespace.
	unreachable, unreadable error
	// looking, when set, is called with every preview, sending with every request.
	looking, sending func()
	as               []action.Principal // in whose name each request was sent
}

func target(a action.Action) string {
	return a.Resource.GroupResource() + "/" + a.Subresource + " " + a.Namespace + "/" + a.Name
}

func (c *fakeCluster) Resolve(_ context.Context, _, _, kind string) (action.Resource, error) {
	c.mu.Lock()
	c.looked++
	c.mu.Unlock()
	kinds := map[string]action.Resource{
		"configmap": {Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true},
		"secret":    {Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true},
		"pod":       {Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true},
	}
	r, ok := kinds[strings.ToLower(kind)]
	if !ok {
		return r, tools.BadArgument("no kind %q", kind)
	}
	return r, nil
}

func (c *fakeCluster) Served(context.Context, string) (tools.Served, error) {
	return tools.Served{Version: "v1.2.3"}, nil
}

func (c *fakeCluster) Kubectl(context.Context, string, func(context.Context, action.Action) (tools.Response, error)) tools.Kubectl {
	return tools.Offline(c, noon).Kubectl(context.Background(), "")
}

// asks notes in whose name a request is sent: none is sent in nobody's.
func (c *fakeCluster) asks(as *action.Principal) {
	if as == nil {
		c.t.Error("a request is sent in nobody's name")
		return
	}
	c.as = append(c.as, *as)
}

// after is what the request makes of the object.
func (c *fakeCluster) after(a action.Action) map[string]any {
	if a.Verb == action.Delete {
		return nil
	}
	live := c.objects[target(a)]
	out := maps.Clone(live)
	if live == nil {
		out = map[string]any{"metadata": map[string]any{"uid": "uid of " + a.Name, "name": a.Name}}
	}
	if _, list := a.Body.([]any); list { // a JSON Patch, taken for one that adds to a list
		data, _ := out["data"].(map[string]any)
		items, _ := data["items"].([]any)
		out["data"] = map[string]any{"items": append(slices.Clone(items), "x")}
	}
	body, _ := a.Body.(map[string]any)
	for key, value := range body {
		if key != "metadata" {
			out[key] = value
		}
	}
	return out
}

// Namespace gives namespace NAME the label name=NAME; "absent" is none.
func (c *fakeCluster) Namespace(_ context.Context, as *action.Principal, _, name, _ string) (map[string]any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks(as)
	c.namespacesRead = append(c.namespacesRead, name)
	if name == "absent" || c.unreadable != nil {
		return nil, c.unreadable
	}
	return map[string]any{"metadata": map[string]any{"name": name, "labels": map[string]any{"name": name}}}, nil
}

func (c *fakeCluster) Preview(_ context.Context, as *action.Principal, a action.Action, auditID func() string) (action.Preview, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks(as)
	c.looked++
	if c.looking != nil {
		c.looking()
	}
	if !c.store.knows(auditID()) {
		c.t.Errorf("%s is previewed before its intent is stored", a)
	}
	if c.unreachable != nil {
		return action.Preview{}, c.unreachable
	}
	if a.Verb == action.Delete && c.objects[target(a)] == nil {
		return action.Preview{}, &APIError{Code: 404, Reason: "NotFound", Message: a.Name + " not found"}
	}
	if a.Subresource == action.Exec {
		pod := c.objects["pods/ "+a.Namespace+"/"+a.Name]
		return action.Preview{Live: pod, Result: pod, Diff: []action.Change{{Op: "add", Path: "/exec"}}}, nil
	}
	if a.Verb == action.Create && c.objects[target(a)] != nil {
		return action.Preview{}, exists(a)
	}
	return action.NewPreview(c.objects[target(a)], c.after(a)), nil
}

func exists(a action.Action) error {
	return &APIError{Code: 409, Reason: "AlreadyExists", Message: a.Name + " already exists"}
}

func (c *fakeCluster) Execute(ctx context.Context, as *action.Principal, a action.Action, auditID string, seen Live) (Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks(as)
	if a.ReadOnly() {
		c.looked++
	} else {
		c.sent = append(c.sent, a.String())
		if !c.store.started(auditID) {
			c.t.Errorf("%s is sent before exec.started with its Audit-ID %s is stored", a, auditID)
		}
	}
	if ctx.Err() != nil {
		return Response{}, fmt.Errorf("%w: %w", ErrNotSent, ctx.Err())
	}
	if c.sending != nil {
		c.sending()
	}
	of := a
	if a.Subresource == action.Exec {
		of.Subresource = ""
	}
	live, _ := c.objects[target(of)]["metadata"].(map[string]any)
	if version, _ := live["resourceVersion"].(string); seen.UID != "" && (live["uid"] != seen.UID || version != seen.ResourceVersion) {
		return Response{}, &APIError{Code: 409, Reason: "Conflict", Message: "another object"}
	}
	effect, err := true, error(nil)
	if c.refuse != nil {
		err, effect = c.refuse(a)
	}
	if a.Subresource == action.Exec {
		return Response{Code: 200, Body: []byte(`{"exitCode":0,"stdout":"HOME=/"}`)}, err
	}
	if a.Verb == action.Create && a.Name == "" {
		a.Name = "made-up"
	} else if a.Verb == action.Create && c.objects[target(a)] != nil {
		return Response{}, exists(a)
	}
	result := c.objects[target(a)]
	if !a.ReadOnly() && (err == nil || effect) {
		result = c.after(a)
		c.objects[target(a)] = result
	}
	if err != nil {
		return Response{}, err
	}
	if a.ReadOnly() && result == nil {
		return Response{}, &APIError{Code: 404, Reason: "NotFound", Message: a.Name + " not found"}
	}
	body, _ := json.Marshal(result)
	return Response{Code: 200, Body: body, Name: a.Name, UID: seen.UID}, nil
}

// knows reports whether an intent of the operation that the Audit-ID names is stored.
func (m *memory) knows(auditID string) bool {
	op, _, _ := strings.Cut(auditID, ".")
	return slices.ContainsFunc(m.all(), func(r audit.Record) bool { return r.Op == op })
}

func (m *memory) started(auditID string) bool {
	return slices.ContainsFunc(m.all(), func(r audit.Record) bool {
		return r.Type == audit.ExecStarted && slices.ContainsFunc(r.Actions, func(a audit.Action) bool { return a.AuditID == auditID })
	})
}

func (c *fakeCluster) executed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

// asked is how often the cluster was asked anything.
func (c *fakeCluster) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.looked + len(c.sent)
}

func (c *fakeCluster) set(name string, object map[string]any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objects[name] = object
}

const webScale = "deployments.apps/scale shop/web"

func scaleObject(uid string, replicas int64) map[string]any {
	return map[string]any{"kind": "Scale", "metadata": map[string]any{"uid": uid, "name": "web"}, "spec": map[string]any{"replicas": replicas}}
}

// rig is a gate between a memory and a fakeCluster, at a time that stands still.
type rig struct {
	*Gate
	t       *testing.T
	store   *memory
	cluster *fakeCluster
	policy  atomic.Pointer[policy.Set]
	clock   atomic.Pointer[time.Time]
}

// noon is in the future, so that nothing expires by itself while a test runs.
var noon = time.Date(2126, 3, 14, 12, 0, 0, 0, time.UTC)

// everything that agents may do, if bea or carl of sre agrees.
const askAlways = `  - {name: ask, effect: require_approval, match: {principals: {groups: [agents]}}, approval: {approvers: [sre], expires: 1h}}`

const allowAll = `  - {name: all, effect: allow, match: {principals: {groups: [agents]}}}`

// everyTool is made once, which takes longer than most of these tests.
var everyTool = sync.OnceValue(func() []*tools.Tool { return tools.All([]string{"local"}) })

func newRig(t *testing.T, rules string) *rig {
	t.Helper()
	store := &memory{ops: map[string]approvals.Operation{}, questions: map[string]string{}, grants: map[string]approvals.Grant{}, changed: make(chan struct{})}
	r := &rig{t: t, store: store, cluster: &fakeCluster{t: t, store: store, objects: map[string]map[string]any{webScale: scaleObject("u-1", 2)}}}
	r.clock.Store(&noon)
	r.rules(rules)
	r.start()
	return r
}

func (r *rig) rules(rules string) {
	r.t.Helper()
	text := "apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n" + rules + "\n"
	set, err := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte(text)}}, policy.Known{Approvers: []string{"sre", "security"}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.policy.Store(set)
}

// start starts a gate on what is stored, as after a restart or as another replica.
func (r *rig) start() *Gate {
	r.t.Helper()
	r.Gate = &Gate{
		Store: r.store, Cluster: r.cluster, Policy: r.policy.Load, Tools: everyTool(), Clusters: []string{"local"}, DigestKey: []byte("key"),
		Cooldown: 5 * time.Minute, MaxPending: 20, GrantFor: 30 * time.Minute, RequestTimeout: time.Minute, Node: "test", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Now: func() time.Time { return *r.clock.Load() },
	}
	if err := r.Start(); err != nil {
		r.t.Fatal(err)
	}
	g := r.Gate
	r.t.Cleanup(func() { g.Stop(context.Background()) })
	return g
}

// restart mends the store and starts a gate on what it holds.
func (r *rig) restart() {
	r.t.Helper()
	r.Stop(r.t.Context())
	r.store.mu.Lock()
	r.store.poisoned, r.store.fault = nil, nil
	r.store.mu.Unlock()
	r.start()
}

func (r *rig) later(d time.Duration) {
	t := r.clock.Load().Add(d)
	r.clock.Store(&t)
}

var bot = action.Principal{Issuer: "https://idp", Subject: "bot", Username: "bot", Groups: []string{"agents"}}

func (r *rig) call(tool, args string) Result {
	return r.callAs(bot, tool, args)
}

func (r *rig) callAs(p action.Principal, tool, args string) Result {
	return r.Call(r.t.Context(), Request{Principal: p, Tool: tool, RawArgs: []byte(args), Session: "s", Source: audit.Source{Transport: "http"}})
}

func (r *rig) scale(replicas int) Result {
	return r.call("scale_deployment", fmt.Sprintf(`{"namespace":"shop","name":"web","replicas":%d,"reason":"busy"}`, replicas))
}

func sre(name string) approvals.Person {
	return approvals.Person{ID: "local:" + name, Name: name, Sets: []string{"sre"}}
}

func (r *rig) approve(id string) {
	r.t.Helper()
	if _, err := r.Vote(id, sre("bea"), approvals.Ballot{Approve: true}); err != nil {
		r.t.Fatal(err)
	}
}

// reaches waits until the operation is in the state, whichever replica moves it.
func (r *rig) reaches(id string, want approvals.State) (op approvals.Operation) {
	r.t.Helper()
	r.store.until(r.t, func() bool {
		var err error
		if op, err = r.store.Operation(id); err != nil {
			r.t.Fatal(err)
		}
		return op.State == want
	}, func() string { return fmt.Sprintf("operation is %s (%s); want %s", op.State, op.Reason, want) })
	return op
}

// wantSent checks what was executed, in order.
func (r *rig) wantSent(want ...string) {
	r.t.Helper()
	if got := r.cluster.executed(); !slices.Equal(got, want) {
		r.t.Errorf("executed %q; want %q", got, want)
	}
}

const scaled = "patch deployments.apps/scale shop/web"

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
