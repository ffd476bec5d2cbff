package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
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
	"countersign/tools"
)

// front is the real front with a real gate behind it, on a port of this machine.
// The store keeps records and nothing else, the cluster has one answer.
type front struct {
	*Server
	t     *testing.T
	url   string
	store *memory
	// executing, when set, is called with every request to the cluster.
	executing func(ctx context.Context)
	log       logged
}

// memory embeds what these tests do not need.
type memory struct {
	gate.Store
	mu      sync.Mutex
	records []audit.Record
}

func (m *memory) Commit(_ context.Context, b gate.Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range b.Entries {
		m.records = append(m.records, e.Record)
	}
	return nil
}

func (m *memory) Locks() ([]approvals.Lock, error)                      { return nil, nil }
func (m *memory) Grants() ([]approvals.Grant, error)                    { return nil, nil }
func (m *memory) OpenOperations() ([]approvals.Operation, error)        { return nil, nil }
func (m *memory) Operations(func(approvals.Operation) bool) error       { return nil }
func (m *memory) Operation(id string) (op approvals.Operation, _ error) { return op, gate.ErrNotFound }

// of are the records of a type.
func (m *memory) of(recordType string) []audit.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.records), func(r audit.Record) bool { return r.Type != recordType })
}

type oneAnswer struct {
	gate.Cluster
	front *front
}

func (c oneAnswer) Execute(ctx context.Context, _ *action.Principal, a action.Action, _ string, _ gate.Live) (gate.Response, error) {
	if c.front.executing != nil {
		c.front.executing(ctx)
	}
	return gate.Response{Code: 200, Name: a.Name, Body: []byte(`{"kind":"Table","columnDefinitions":[{"name":"Name","type":"string"}],"rows":[]}`)}, ctx.Err()
}

func (oneAnswer) Resolve(context.Context, string, string, string) (action.Resource, error) {
	return action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}, nil
}

// tokens are those that are accepted: who it is, and for what.
type tokens map[string][]string

func (k tokens) Authenticate(_ context.Context, token string) (action.Principal, []string, error) {
	scopes, ok := k[token]
	if !ok {
		return action.Principal{}, nil, errors.New("unknown token")
	}
	subject, _, _ := strings.Cut(token, "/")
	return action.Principal{Issuer: "https://idp", Subject: subject, Username: subject, Groups: []string{"agents"}, Client: "devin"}, scopes, nil
}

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newFront starts a front; before, when given, is called with it before it serves.
func newFront(t *testing.T, before ...func(*front)) *front {
	t.Helper()
	set, err := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n  - {name: all, effect: allow, match: {principals: {groups: [agents]}}}\n")}}, policy.Known{})
	if err != nil {
		t.Fatal(err)
	}
	f := &front{t: t, store: &memory{}}
	log := slog.New(slog.NewJSONHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g := &gate.Gate{
		Store: f.store, Cluster: oneAnswer{front: f}, Policy: func() *policy.Set { return set }, Tools: tools.All([]string{"local"}), Clusters: []string{"local"},
		DigestKey: []byte("key"), MaxPending: 20, RequestTimeout: time.Minute, Log: log, Now: time.Now,
	}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.url = "http://" + listener.Addr().String() + "/mcp"
	f.Server = New(Config{
		Gate: g, Authenticator: tokens{"bot": nil, "other": nil}, Version: "test", Log: log, URL: f.url, SessionKey: []byte("key"),
		PerPrincipal: 10_000, PerAddress: 10_000, Ready: func(context.Context) (bool, string) { return true, "fine\n" },
	})
	for _, f2 := range before {
		f2(f)
	}
	web := Web(f.Handler())
	web.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	go web.Serve(Listener(listener))
	t.Cleanup(func() {
		web.Close()
		g.Stop(context.Background())
	})
	return f
}

type reply struct {
	status int
	header http.Header
	body   string
}

// send sends a message; headers are pairs, of which an empty value takes one away.
func (f *front) send(token, body string, headers ...string) reply {
	f.t.Helper()
	return f.do(http.MethodPost, f.url, token, body, headers...)
}

func (f *front) do(method, url, token, body string, headers ...string) reply {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(answer)}
}

const (
	modernVersion = "2026-07-28"
	modernMeta    = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"rig","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}`
)

// modern sends a message of the revision without sessions, with the headers that it
// demands; params are the members beside _meta, and meta those beside its own.
func (f *front) modern(token, method, name, params, meta string, headers ...string) reply {
	f.t.Helper()
	if params != "" {
		params += ","
	}
	if meta != "" {
		meta = "," + meta
	}
	all := []string{headerVersion, modernVersion, "Mcp-Method", method}
	if name != "" {
		all = append(all, "Mcp-Name", name)
	}
	return f.send(token, fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":{%s"_meta":{%s%s}}}`, method, params, modernMeta, meta), append(all, headers...)...)
}

// call calls a tool without a session.
func (f *front) call(token, tool, arguments, meta string, headers ...string) reply {
	f.t.Helper()
	return f.modern(token, "tools/call", tool, fmt.Sprintf(`"name":%q,"arguments":%s`, tool, arguments), meta, headers...)
}

// initialize begins a session of an earlier revision.
func (f *front) initialize(token, version string) string {
	f.t.Helper()
	r := f.send(token, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"rig","version":"1"}}}`)
	var answer struct {
		Result struct{ ProtocolVersion string }
	}
	if err := json.Unmarshal([]byte(r.body), &answer); err != nil || r.status != 200 || answer.Result.ProtocolVersion != version {
		f.t.Fatalf("initialize: %+v, %v", r, err)
	}
	return r.header.Get(headerSession)
}

const scale = `{"namespace":"shop","name":"web","replicas":3}`

// Both eras on one endpoint. Where headers have to repeat the body, those that say
// something else are refused, whichever of them a proxy or a policy looked at.
func TestBothEras(t *testing.T) {
	f := newFront(t)
	for _, version := range []string{"2025-03-26", "2025-06-18", "2025-11-25"} {
		session := f.initialize("bot", version)
		r := f.send("bot", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list_namespaces","arguments":{}}}`, headerSession, session, headerVersion, version)
		if r.status != 200 || !strings.Contains(r.body, "END-OF-DATA") {
			t.Errorf("%s: %+v", version, r)
		}
		if r := f.send("bot", `{"jsonrpc":"2.0","id":2,"method":"server/discover"}`, headerSession, session, headerVersion, version); !strings.Contains(r.body, `"error"`) {
			t.Errorf("%s has no server/discover: %+v", version, r)
		}
	}
	r := f.modern("bot", "server/discover", "", "", "")
	if r.status != 200 || !strings.Contains(r.body, modernVersion) || !strings.Contains(r.body, "2025-11-25") || r.header.Get(headerSession) != "" {
		t.Errorf("server/discover: %+v", r)
	}
	for _, row := range []struct {
		name    string
		headers []string
		want    int
	}{
		{"as the body says", nil, 200},
		{"a session, which there is none of", []string{headerSession, "nonsense"}, 200},
		{"another tool", []string{"Mcp-Name", "get_resource"}, 400},
		{"no tool", []string{"Mcp-Name", ""}, 400},
		{"another method", []string{"Mcp-Method", "tools/list"}, 400},
		{"no method", []string{"Mcp-Method", ""}, 400},
		{"another revision", []string{headerVersion, "2025-11-25"}, 400},
		{"no revision", []string{headerVersion, ""}, 400},
		{"a stream to go on with", []string{"Last-Event-ID", "1"}, 400},
	} {
		if r := f.call("bot", "list_namespaces", `{}`, "", row.headers...); r.status != row.want {
			t.Errorf("%s: %+v", row.name, r)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		if r := f.do(method, f.url, "bot", "", headerVersion, modernVersion, headerSession, "x"); r.status != http.StatusMethodNotAllowed {
			t.Errorf("%s: %+v", method, r)
		}
	}
	// The body alone says which revision it is in; a header cannot take the checks away.
	if r := f.send("bot", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, headerVersion, modernVersion); r.status != 400 {
		t.Errorf("a modern header on an old message: %+v", r)
	}
	if r := f.send("bot", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, headerSession, "x", headerVersion, "2025-11-25"); r.status != 404 {
		t.Errorf("a session that is none: %+v", r)
	}
}

// What mcp-go offers and Countersign does not: tasks, which skip the middleware
// and end their own context, and streams that stay open without an end.
func TestNotOffered(t *testing.T) {
	f := newFront(t)
	for era, r := range map[string]reply{
		"sessions": f.send("bot", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"rig","version":"1"}}}`),
		"modern":   f.modern("bot", "server/discover", "", "", ""),
	} {
		for _, word := range []string{"tasks", `"listChanged":true`, `"subscribe":true`} {
			if r.status != 200 || strings.Contains(r.body, word) {
				t.Errorf("%s: %s is offered: %+v", era, word, r)
			}
		}
	}
	session := f.initialize("bot", "2025-11-25")
	r := f.send("bot", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list_namespaces","arguments":{},"task":{"ttl":60000}}}`, headerSession, session)
	if strings.Contains(r.body, "taskId") {
		t.Errorf("a task was made: %+v", r)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			r := f.modern("bot", "subscriptions/listen", "", `"notifications":{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true,"resourceSubscriptions":["countersign://policy"]}`, "")
			if !strings.Contains(r.body, `"notifications/subscriptions/acknowledged"`) {
				t.Errorf("what is subscribed, nothing, is not said: %+v", r)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("a stream stays open on which nothing can come")
	}
}

// A client that answers what nobody asked brings about no error of the server's: status
// shows the last one, and an agent could hide it.
func TestAnswersToNobody(t *testing.T) {
	f := newFront(t)
	session := f.initialize("bot", "2025-11-25")
	for _, answer := range []string{`"result":{"a":1}`, `"error":{"code":1,"message":"x"}`, `"result":{"action":"accept","content":{}}`} {
		if r := f.send("bot", `{"jsonrpc":"2.0","id":1,`+answer+`}`, headerSession, session); r.status != 400 {
			t.Errorf("%+v", r)
		}
	}
	if log := f.log.String(); strings.Contains(log, `"level":"ERROR"`) || !strings.Contains(log, `"level":"WARN"`) {
		t.Errorf("the log says\n%s", log)
	}
}

// A proxy on this machine passes the Host on that clients use.
func TestBehindALocalProxy(t *testing.T) {
	f := newFront(t, func(f *front) { f.AllowedHosts = []string{"countersign.example.com"} })
	if r := f.call("bot", "list_namespaces", `{}`, "", "Host", "countersign.example.com"); r.status != 200 {
		t.Errorf("%+v", r)
	}
	if r := f.call("bot", "list_namespaces", `{}`, "", "Host", "evil.example.com"); r.status != 403 {
		t.Errorf("%+v", r)
	}
}

// What panics is said to the operators, and not to the caller.
func TestPanic(t *testing.T) {
	f := newFront(t, func(f *front) { f.executing = func(context.Context) { panic("hunter2 is the password") } })
	r := f.call("bot", "list_namespaces", `{}`, "")
	if !strings.Contains(r.body, "error of its own") || strings.Contains(r.body, "hunter2") {
		t.Errorf("%+v", r)
	}
	op := regexp.MustCompile(`"op":"([0-9a-f-]{36})"`).FindStringSubmatch(r.body)
	if op == nil {
		t.Fatalf("the caller has no op to ask about: %+v", r)
	}
	for line := range strings.Lines(f.log.String()) {
		if strings.Contains(line, "hunter2") && strings.Contains(line, op[1]) {
			return
		}
	}
	t.Errorf("the log does not say what panicked, with the op:\n%s", f.log.String())
}

// On stdio a message has the bounds that it has over HTTP. What is refused is answered,
// is on record, and the session goes on.
func TestStdioMessages(t *testing.T) {
	f := newFront(t, func(f *front) { f.Token = "bot" })
	in, write := io.Pipe()
	read, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- f.ServeStdio(t.Context(), in, out) }()
	answers := bufio.NewReader(read)
	ping := func(params string) string { return `{"jsonrpc":"2.0","id":7,"method":"ping","params":` + params + `}` }
	for _, row := range []struct{ name, line, want string }{
		{"a ping", ping("{}"), `"result":{}`},
		{"an empty line before it", "\n  \n" + ping("{}"), `"result":{}`},
		{"more than 4 MiB", ping(`{"x":"` + strings.Repeat("x", maxBody) + `"}`), "larger than 4 MiB"},
		{"100 MB of nothing", strings.Repeat("x", 100<<20), "larger than 4 MiB"},
		{"more than 64 KiB, and no tool call", ping(`{"x":"` + strings.Repeat("x", maxOther) + `"}`), "larger than 64 KiB"},
		{"a large tool call", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"list_namespaces","arguments":{"x":"` + strings.Repeat("x", 1<<20) + `"}}}`, "unknown"},
		{"nesting", ping(strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)), "nests too deeply"},
		{"a name twice", ping(`{"name":"a","name":"b"}`), "duplicate"},
		{"a name in another case", ping(`{"Name":"a"}`), "names are case-sensitive"},
		{"a batch", "[" + ping("{}") + "]", "batches are not served"},
		{"no JSON", "hello", "not a JSON object"},
		{"and a ping", ping("{}"), `"result":{}`},
	} {
		go fmt.Fprintln(write, row.line)
		if answer, err := answers.ReadString('\n'); err != nil || !strings.Contains(answer, row.want) {
			t.Fatalf("%s: %.300s %v", row.name, answer, err)
		}
	}
	write.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(f.store.of(audit.CallRefused)); n != 9 { // the large tool call too, by its tool
		t.Errorf("%d refused messages are on record", n)
	}
}

// A caller who goes away, or whose stdin ends, does not stop a change that has
// begun; and on stdio the token's scopes hold too.
func TestStdio(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	var cut error
	f := newFront(t, func(f *front) {
		f.Authenticator, f.Token = tokens{"bot": {"r", "c"}, "reader": {"r"}}, "bot"
		f.Scopes = Scopes{Read: "r", Change: "c"}
		f.executing = func(ctx context.Context) {
			close(began)
			<-finish
			cut = ctx.Err()
		}
	})
	in, write := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- f.ServeStdio(t.Context(), in, io.Discard) }()
	fmt.Fprintln(write, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"rig","version":"1"}}}`)
	fmt.Fprintln(write, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"scale_deployment","arguments":`+scale+`}}`)
	<-began
	write.Close()
	close(finish)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	f.Gate.Stop(context.Background())
	if outcomes := f.store.of(audit.ExecOutcome); cut != nil || len(outcomes) != 1 || outcomes[0].Outcome != audit.Success || !strings.HasPrefix(outcomes[0].Session, "stdio:") {
		t.Errorf("%v, %+v", cut, outcomes)
	}

	f.Token = "reader"
	var out bytes.Buffer
	in, write = io.Pipe()
	go func() {
		fmt.Fprintln(write, `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"scale_deployment","arguments":`+scale+`}}`)
		for len(f.store.of(audit.CallRefused)) == 0 {
			time.Sleep(time.Millisecond)
		}
		write.Close()
	}()
	if err := f.ServeStdio(t.Context(), in, &out); err != nil || strings.Contains(out.String(), "succeeded") {
		t.Errorf("%s, %v", out.String(), err)
	}
}

// No token is in the log or in a record, whatever is done with it.
func TestTokensStayHere(t *testing.T) {
	const good, bad = "bot/eyJhbGciOiJSUzI1NiJ9.good.signature", "eyJhbGciOiJSUzI1NiJ9.bad.signature"
	f := newFront(t, func(f *front) {
		f.Authenticator = tokens{good: nil}
		f.executing = func(context.Context) { panic("again") }
	})
	for _, token := range []string{good, bad} {
		f.call(token, "list_namespaces", `{}`, "")
		f.call(token, "list_namespaces", `{"nonsense":1}`, "")
		f.send(token, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[`)
		f.send(token, `[]`, headerSession, "x")
		f.do(http.MethodGet, f.url, token, "")
		f.do(http.MethodGet, f.url+"/elsewhere", token, "")
	}
	f.store.mu.Lock()
	records, err := json.Marshal(f.store.records)
	f.store.mu.Unlock()
	if err != nil || len(f.store.of(audit.LoginRefused)) == 0 || len(f.store.of(audit.CallRefused)) == 0 {
		t.Fatalf("%s, %v", records, err)
	}
	for _, token := range []string{good, bad} {
		if strings.Contains(string(records), token) || strings.Contains(f.log.String(), token) {
			t.Errorf("%s stands in the log\n%s", token, f.log.String())
		}
	}
}

// Who may ask what the server is like: a kubelet, under the pod's address, without
// a token. It is found out once for all who ask.
func TestHealth(t *testing.T) {
	asked, ready := 0, true
	f := newFront(t, func(f *front) {
		f.Ready = func(context.Context) (bool, string) {
			asked++
			return ready, "clusters: 1 of 2 reachable\n"
		}
	})
	root := strings.TrimSuffix(f.url, "/mcp")
	for range 5 {
		for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "clusters: 1 of 2 reachable\n"} {
			if r := f.do(http.MethodGet, root+path, "", "", "Host", "10.1.2.3:8080"); r.status != 200 || r.body != want {
				t.Errorf("%s: %+v", path, r)
			}
		}
	}
	if asked != 1 {
		t.Errorf("looked %d times", asked)
	}
	ready = false
	f.looked = f.looked.Add(-healthEvery)
	if r := f.do(http.MethodGet, root+"/readyz", "", ""); r.status != 503 {
		t.Errorf("%+v", r)
	}
	if r := f.do(http.MethodGet, root+"/healthz", "", ""); r.status != 200 {
		t.Errorf("%+v", r)
	}
	ready = true
	f.looked = f.looked.Add(-healthEvery)
	f.Drain(t.Context())
	if r := f.do(http.MethodGet, root+"/readyz", "", ""); r.status != 503 || r.body != "stopping\n" {
		t.Errorf("%+v", r)
	}
}

// A server that stops finishes what runs, and tells who comes now to come again.
func TestDrain(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	f := newFront(t, func(f *front) {
		f.executing = func(context.Context) {
			close(began)
			<-finish
		}
	})
	running, drained := make(chan reply, 1), make(chan struct{})
	go func() { running <- f.call("bot", "list_namespaces", `{}`, "") }()
	<-began
	go func() {
		f.Drain(t.Context())
		close(drained)
	}()
	for !f.running.stopped() {
		time.Sleep(time.Millisecond)
	}
	if r := f.call("bot", "list_namespaces", `{}`, ""); r.status != 503 || r.header.Get("Retry-After") == "" {
		t.Errorf("%+v", r)
	}
	select {
	case <-drained:
		t.Error("the server did not wait")
	default:
	}
	close(finish)
	<-drained
	if r := <-running; r.status != 200 || !strings.Contains(r.body, "END-OF-DATA") {
		t.Errorf("%+v", r)
	}
}
