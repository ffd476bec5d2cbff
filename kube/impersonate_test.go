package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"countersign/action"
	"countersign/gate"
	"countersign/tools"
)

var alice = action.Principal{
	Issuer: "https://idp.example.com", Subject: "7d2f", Username: "alice", Groups: []string{"sre", "Jörg's"}, Client: "bot", OnBehalfOf: "bea@example.com",
}

func TestImpersonateHeaders(t *testing.T) {
	const cluster = "https://cluster.example.com"
	prefixed := Impersonate{UsernamePrefix: "idp:", GroupsPrefix: "idp-", ServiceAccountIssuer: cluster}
	bare := Impersonate{ServiceAccountIssuer: cluster}
	with := func(change func(*action.Principal)) action.Principal {
		p := alice
		p.Groups = slices.Clone(p.Groups)
		change(&p)
		return p
	}
	account := func(subject string) action.Principal {
		// What a claim was mapped to, and groups of whatever origin, do not count.
		return action.Principal{Issuer: cluster, Subject: subject, Username: "root", Groups: []string{"system:masters"}}
	}
	for _, row := range []struct {
		name string
		as   Impersonate
		p    action.Principal
		want string // user|group,group|extras, or an error after !
	}{
		{"prefixes", prefixed, alice, "idp:alice|idp-sre,idp-Jörg's|"},
		{"none", bare, alice, "alice|sre,Jörg's|"},
		{"extras", Impersonate{Extra: []string{"on-behalf-of", "client", "issuer"}}, alice,
			"alice|sre,Jörg's|Impersonate-Extra-Countersign%2fclient=bot,Impersonate-Extra-Countersign%2fissuer=https://idp.example.com,Impersonate-Extra-Countersign%2fon-Behalf-Of=bea@example.com"},
		{"an extra that is not known", Impersonate{Extra: []string{"client"}}, with(func(p *action.Principal) { p.Client = "" }), "alice|sre,Jörg's|"},
		{"no groups", prefixed, with(func(p *action.Principal) { p.Groups = nil }), "idp:alice||"},

		// Service accounts of the cluster itself keep their names, and the API server
		// knows their groups.
		{"a service account", prefixed, account("system:serviceaccount:agents:on.call-1"), "system:serviceaccount:agents:on.call-1||"},
		{"no service account", prefixed, account("system:admin"), `!is no service account`},
		{"a path in its name", prefixed, account("system:serviceaccount:agents:../x"), `!is no service account`},
		{"three parts", prefixed, account("system:serviceaccount:agents:a:b"), `!is no service account`},
		{"a line after it", prefixed, account("system:serviceaccount:agents:a\n"), `!is no service account`},
		// Those of another cluster are somebody else.
		{"of another cluster", prefixed, action.Principal{Issuer: "https://staging", Subject: "system:serviceaccount:a:b", Username: "system:serviceaccount:a:b", Groups: []string{"system:serviceaccounts"}},
			"idp:system:serviceaccount:a:b|idp-system:serviceaccounts|"},
		{"of another cluster, without a prefix", bare, action.Principal{Issuer: "https://staging", Subject: "system:serviceaccount:a:b", Username: "system:serviceaccount:a:b"}, "!begins with system:"},

		// Whoever names users and groups at the issuer.
		{"system:masters", bare, with(func(p *action.Principal) { p.Groups[1] = "system:masters" }), "!a group of yours: \"system:masters\" begins with system:"},
		{"system:authenticated", bare, with(func(p *action.Principal) { p.Groups[1] = "system:authenticated" }), "!begins with system:"},
		{"in another case", bare, with(func(p *action.Principal) { p.Groups[1] = "System:Masters" }), "!begins with system:"},
		{"kubeadm's administrators", bare, with(func(p *action.Principal) { p.Groups[1] = "kubeadm:cluster-admins" }), "!begins with kubeadm:"},
		{"put together", Impersonate{GroupsPrefix: "sys"}, with(func(p *action.Principal) { p.Groups[1] = "tem:masters" }), "!begins with system:"},
		{"a user", bare, with(func(p *action.Principal) { p.Username = "system:admin" }), "!your user name: "},
		{"space that a header loses", bare, with(func(p *action.Principal) { p.Groups[1] = " system:masters" }), "!white space"},
		{"a tab", bare, with(func(p *action.Principal) { p.Username = "\tsystem:admin" }), "!white space"},
		{"space at the end", bare, with(func(p *action.Principal) { p.Username = "alice " }), "!white space"},
		{"a space that is not ASCII", bare, with(func(p *action.Principal) { p.Username = "\u00a0alice" }), "!white space"},
		{"another header", bare, with(func(p *action.Principal) { p.Username = "alice\r\nImpersonate-Group: system:masters" }), "!characters that nobody sees"},
		{"what nobody sees", bare, with(func(p *action.Principal) { p.Groups[0] = "sre\u200b" }), "!characters that nobody sees"},
		{"not UTF-8", bare, with(func(p *action.Principal) { p.Groups[0] = "sre\xff" }), "!characters that nobody sees"},
		{"empty group", prefixed, with(func(p *action.Principal) { p.Groups[0] = "" }), "!it is empty"},
		{"empty user", prefixed, with(func(p *action.Principal) { p.Username = "" }), "!it is empty"},
		{"a line in an extra", Impersonate{Extra: []string{"client"}}, with(func(p *action.Principal) { p.Client = "a\nb" }), "!client: "},
	} {
		user, h, err := row.as.headers(&row.p)
		var extras []string
		for key, values := range h {
			if strings.HasPrefix(key, "Impersonate-Extra-") {
				extras = append(extras, key+"="+strings.Join(values, ";"))
			}
		}
		slices.Sort(extras)
		got := user + "|" + strings.Join(h["Impersonate-Group"], ",") + "|" + strings.Join(extras, ",")
		if err != nil {
			got = "!" + err.Error()
		} else if h.Get("Impersonate-User") != user {
			t.Errorf("%s: user %q, header %q", row.name, user, h.Get("Impersonate-User"))
		}
		if got != row.want && (err == nil || row.want == "" || row.want[0] != '!' || !strings.Contains(got, row.want[1:])) {
			t.Errorf("%s: got %s; want %s", row.name, got, row.want)
		}
	}
}

// api is an API server that notes what it is asked, and by whom.
type api struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
	// answer, when set, is asked before the usual answers.
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := r.Header
	line := r.Method + " " + r.URL.Path
	if r.URL.Query().Has("dryRun") {
		line += " dry"
	}
	if h.Get("Upgrade") != "" {
		line += " " + h.Get("Upgrade")
	}
	if len(h["Impersonate-User"]) > 0 || len(h["Impersonate-Group"]) > 0 {
		line += " as " + strings.Join(h["Impersonate-User"], ";") + " of " + strings.Join(h["Impersonate-Group"], ";")
	}
	a.mu.Lock()
	a.seen = append(a.seen, line)
	answer := a.answer
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case answer != nil && answer(w, r):
	case r.URL.Path == "/api":
		fmt.Fprint(w, `{"kind":"APIVersions","versions":["v1"]}`)
	case r.URL.Path == "/apis":
		fmt.Fprint(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)
	case r.URL.Path == "/api/v1":
		fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get","list"]}]}`)
	default:
		fmt.Fprint(w, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","uid":"u-1","resourceVersion":"5"}}`)
	}
}

func (a *api) set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// take gives what was asked since it was last called.
func (a *api) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := a.seen
	a.seen = nil
	return seen
}

func status(w http.ResponseWriter, code int, reason, message string) bool {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q}`, code, reason, message)
	return true
}

// startAPI starts one, and connects the cluster "c" of this configuration to it.
func startAPI(t *testing.T, config Config) (*api, *Clusters) {
	t.Helper()
	a := &api{}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	config.Name, config.Kubeconfig = "c", filepath.Join(t.TempDir(), "kubeconfig")
	write(t, config.Kubeconfig, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}`, a.URL))
	clusters, err := New([]Config{config}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return a, clusters
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

var pods = action.Resource{Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true}

func one(verb string) action.Action {
	return action.Action{Cluster: "c", Verb: verb, Resource: pods, Namespace: "shop", Name: "web"}
}

func (a *api) want(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := a.take(); !slices.Equal(got, want) {
		t.Errorf("%s: the API server saw\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Whatever a call leads to shows who called; what the cluster serves is asked by the server.
func TestEveryRequestImpersonates(t *testing.T) {
	a, clusters := startAPI(t, Config{Impersonate: &Impersonate{UsernamePrefix: "idp:", GroupsPrefix: "idp:"}})
	ctx := t.Context()
	const who = " as idp:alice of idp:sre;idp:Jörg's"
	id := func() string { return "op.1" }

	if _, err := clusters.Resolve(ctx, "c", "", "pods"); err != nil {
		t.Fatal(err)
	}
	if got := a.take(); len(got) == 0 || slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, " as ") }) {
		t.Errorf("discovery: %q", got)
	}
	list := one(action.List)
	list.Name = ""
	logs := one(action.Get)
	logs.Subresource, logs.Options.TailBytes = "log", 100
	patch := one(action.Patch)
	patch.Body, patch.Options.PatchType = map[string]any{"metadata": map[string]any{}}, action.MergePatch
	evict := one(action.Create)
	evict.Subresource, evict.Body = action.Eviction, map[string]any{"kind": "Eviction"}
	for _, row := range []struct {
		action action.Action
		want   string
	}{
		{one(action.Get), "GET /api/v1/namespaces/shop/pods/web"}, {list, "GET /api/v1/namespaces/shop/pods"}, {logs, "GET /api/v1/namespaces/shop/pods/web/log"},
		{patch, "PATCH /api/v1/namespaces/shop/pods/web"}, {evict, "POST /api/v1/namespaces/shop/pods/web/eviction"}, {one(action.Delete), "DELETE /api/v1/namespaces/shop/pods/web"},
	} {
		if _, err := clusters.Execute(ctx, &alice, row.action, "op.1", gate.Live{}); err != nil {
			t.Error(err)
		}
		a.want(t, row.action.String(), row.want+who)
		if _, err := clusters.Execute(ctx, nil, row.action, "op.1", gate.Live{}); !errors.Is(err, gate.ErrNotSent) {
			t.Errorf("%s in nobody's name: %v", row.action, err)
		}
	}
	if _, err := clusters.Preview(ctx, &alice, patch, id); err != nil {
		t.Error(err)
	}
	a.want(t, "a preview", "GET /api/v1/namespaces/shop/pods/web"+who, "PATCH /api/v1/namespaces/shop/pods/web dry"+who)
	if _, err := clusters.Namespace(ctx, &alice, "c", "shop", "op.1"); err != nil {
		t.Error(err)
	}
	a.want(t, "a namespace", "GET /api/v1/namespaces/shop"+who)
	_, preview := clusters.Preview(ctx, nil, patch, id)
	_, namespace := clusters.Namespace(ctx, nil, "c", "shop", "op.1")
	if !errors.Is(preview, gate.ErrNotSent) || !errors.Is(namespace, gate.ErrNotSent) {
		t.Errorf("in nobody's name: %v, %v", preview, namespace)
	}
	// What somebody might build without thinking of it is not sent as the server's own.
	c := clusters.byName["c"]
	for _, client := range []interface {
		DoRaw(context.Context) ([]byte, error)
	}{c.reads.Get().AbsPath("/api/v1/secrets"), c.client.Post().AbsPath("/api/v1/secrets").Body([]byte("{}"))} {
		if _, err := client.DoRaw(ctx); !errors.Is(err, gate.ErrNotSent) {
			t.Errorf("a request that nobody thought of: %v", err)
		}
	}
	// A name that the cluster must not see is told to the caller, and nothing is sent.
	masters := alice
	masters.Groups = []string{"sre\n"}
	_, err := clusters.Execute(ctx, &masters, one(action.Get), "op.1", gate.Live{})
	var named *gate.ImpersonationError
	if !errors.As(err, &named) || !errors.Is(err, gate.ErrNotSent) {
		t.Errorf("a name that must not be: %v", err)
	}
	a.want(t, "what was refused")

	// What kubectl's code asks for goes through the gate, and so under the caller's name.
	read := func(ctx context.Context, one action.Action) (tools.Response, error) {
		r, err := clusters.Execute(ctx, &alice, one, "op.1", gate.Live{})
		return tools.Response{Action: one, Body: r.Body}, err
	}
	if _, err := clusters.Kubectl(ctx, "c", read).Describe(pods, "shop", "web"); err != nil {
		t.Error(err)
	}
	asked := a.take()
	if len(asked) == 0 {
		t.Error("kubectl's code asked for nothing")
	}
	for _, line := range asked {
		if !strings.HasSuffix(line, who) {
			t.Errorf("kubectl's code: %s", line)
		}
	}
}

// A command shows who called, in both ways to run one; so does the look at the
// pod before it.
func TestExecImpersonates(t *testing.T) {
	a, clusters := startAPI(t, Config{Impersonate: &Impersonate{GroupsPrefix: "idp:"}})
	const who = " as alice of idp:sre;idp:Jörg's"
	command := one(action.Create)
	command.Subresource, command.Options = action.Exec, action.Options{Command: []string{"ls"}, Container: "web", TimeoutSeconds: 5}
	a.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Upgrade") != "websocket" {
			return false
		}
		upgrader := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
		if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
			conn.WriteMessage(websocket.BinaryMessage, append([]byte{3}, `{"status":"Success"}`...))
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
			conn.ReadMessage()
			conn.Close()
		}
		return true
	})
	if _, err := clusters.Execute(t.Context(), &alice, command, "op.1", gate.Live{UID: "u-1"}); err != nil {
		t.Error(err)
	}
	a.want(t, "over WebSocket", "GET /api/v1/namespaces/shop/pods/web"+who, "GET /api/v1/namespaces/shop/pods/web/exec websocket"+who)

	const message = `pods "web" is forbidden: User "alice" cannot create resource "pods/exec" in API group "" in the namespace "shop"`
	a.set(func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Header.Get("Upgrade") {
		case "websocket":
			return status(w, http.StatusBadRequest, "BadRequest", "no WebSockets here")
		case "":
			return false
		}
		return status(w, http.StatusForbidden, "Forbidden", message)
	})
	_, err := clusters.Execute(t.Context(), &alice, command, "op.1", gate.Live{})
	var refused *gate.APIError
	if !errors.As(err, &refused) || refused.Code != http.StatusForbidden || refused.User != "alice" || refused.Message != message {
		t.Errorf("over SPDY: %v", err)
	}
	a.want(t, "over SPDY", "GET /api/v1/namespaces/shop/pods/web/exec websocket"+who, "POST /api/v1/namespaces/shop/pods/web/exec SPDY/3.1"+who)
	if _, err := clusters.Execute(t.Context(), nil, command, "op.1", gate.Live{}); !errors.Is(err, gate.ErrNotSent) {
		t.Errorf("in nobody's name: %v", err)
	}
	a.want(t, "in nobody's name")
}

// Only what the cluster's RBAC refuses to the caller is told as that.
func TestForbidden(t *testing.T) {
	a, clusters := startAPI(t, Config{Impersonate: &Impersonate{UsernamePrefix: "idp:"}})
	for _, row := range []struct {
		message, user string
	}{
		{`pods "web" is forbidden: User "idp:alice" cannot get resource "pods" in API group "" in the namespace "shop"`, "idp:alice"},
		{`users "idp:alice" is forbidden: User "system:serviceaccount:a:countersign" cannot impersonate resource "users" in API group "" at the cluster scope`, ""},
		{`pods "web" is forbidden: exceeded quota: small`, ""},
		{`pods "web" is forbidden: User "idp:bob" cannot get resource "pods"`, ""},
	} {
		a.set(func(w http.ResponseWriter, r *http.Request) bool {
			return status(w, http.StatusForbidden, "Forbidden", row.message)
		})
		_, err := clusters.Execute(t.Context(), &alice, one(action.Get), "op.1", gate.Live{})
		var refused *gate.APIError
		if !errors.As(err, &refused) || refused.User != row.user || refused.Message != row.message {
			t.Errorf("%s: %v; want user %q", row.message, err, row.user)
		}
	}
}

// Where it is not asked for, the cluster sees the server alone.
func TestNoImpersonation(t *testing.T) {
	a, clusters := startAPI(t, Config{})
	for _, as := range []*action.Principal{&alice, nil} {
		if _, err := clusters.Execute(t.Context(), as, one(action.Get), "op.1", gate.Live{}); err != nil {
			t.Error(err)
		}
		a.want(t, "a read", "GET /api/v1/namespaces/shop/pods/web")
	}
}

// Callers at once do not get into each other's requests.
func TestImpersonateAtOnce(t *testing.T) {
	var wrong sync.Map
	a, clusters := startAPI(t, Config{Impersonate: &Impersonate{}})
	a.set(func(w http.ResponseWriter, r *http.Request) bool {
		user, id := r.Header.Get("Impersonate-User"), r.Header.Get("Audit-ID")
		if "op."+user != id || strings.Join(r.Header["Impersonate-Group"], ",") != "g-"+user {
			wrong.Store(user+" "+id, true)
		}
		io.WriteString(w, "{}")
		return true
	})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			name := fmt.Sprintf("u%d", i)
			p := action.Principal{Issuer: "i", Subject: name, Username: name, Groups: []string{"g-" + name}}
			for range 50 {
				if _, err := clusters.Execute(t.Context(), &p, one(action.Get), "op."+name, gate.Live{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	wrong.Range(func(key, _ any) bool { t.Errorf("mixed up: %v", key); return true })
}
