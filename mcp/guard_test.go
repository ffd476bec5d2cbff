package mcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"golang.org/x/time/rate"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
	"countersign/gate"
)

func TestGoodMessages(t *testing.T) {
	for _, row := range []struct {
		name, body, id, method string
		modern                 bool
	}{
		{"a call", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"list_namespaces","arguments":{"limit":1}}}`, "7", "tools/call", false},
		{"white space", " \r\n\t{ \"jsonrpc\" : \"2.0\", \"id\":\"a\", \"method\":\"ping\"}\n", `"a"`, "ping", false},
		{"a notification", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, "", "notifications/initialized", false},
		{"an answer", `{"jsonrpc":"2.0","id":1,"result":{"x":1}}`, "1", "", false},
		{"params is null", `{"id":1,"method":"ping","params":null}`, "1", "ping", false},
		{"_meta is null", `{"id":1,"method":"ping","params":{"_meta":null}}`, "1", "ping", false},
		{"another revision's _meta", `{"id":1,"method":"ping","params":{"_meta":{"progressToken":1}}}`, "1", "ping", false},
		{"a revision without sessions", `{"id":1,"method":"ping","params":{"_meta":{"` + mcpgo.MetaKeyProtocolVersion + `":"2026-07-28"}}}`, "1", "ping", true},
		{"brackets within text do not nest", `{"id":1,"method":"ping","params":{"a":"` + strings.Repeat(`[{\"`, 100) + `"}}`, "1", "ping", false},
		{"as deep as may be", `{"params":{"a":` + strings.Repeat("[", maxDepth-2) + strings.Repeat("]", maxDepth-2) + `}}`, "", "", false},
		// The tool that they are for looks at these, with the argument's name in the error.
		{"arguments twice within arguments", `{"params":{"arguments":{"a":1,"a":2,"A":3}}}`, "", "", false},
	} {
		m, err := parseMessage(http.MethodPost, []byte(row.body))
		if err != nil || string(m.ID) != row.id || m.Method != row.method || m.modern != row.modern {
			t.Errorf("%s: %+v, %v", row.name, m, err)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		if m, err := parseMessage(method, []byte("not looked at")); err != nil {
			t.Errorf("%s: %+v, %v", method, m, err)
		}
	}
}

// A message that two readers could understand in two ways is refused before
// the library that is more tolerant sees it.
func TestBadMessages(t *testing.T) {
	const either = "case" // of two mistakes in one, either may be named
	for _, row := range []struct{ name, body, want string }{
		{"empty", ``, "the message is not a JSON object"},
		{"white space", "  ", "the message is not a JSON object"},
		{"not JSON", `hello`, "the message is not a JSON object"},
		{"cut off", `{"method":"ping"`, "the message is not a JSON object"},
		{"two messages", `{"method":"ping"}{"method":"ping"}`, "the message is not a JSON object"},
		{"a byte order mark", "\ufeff{}", "the message is not a JSON object"},
		{"text", `"ping"`, "the message is not a JSON object"},
		{"null", `null`, "the message is null where a JSON object is expected"},
		{"a batch", `[{"method":"ping"}]`, "batches are not served: send one message at a time"},
		{"a batch of none", " \r\n\t[]", "batches are not served: send one message at a time"},
		{"too deep", `{"params":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`, "the message nests too deeply"},
		{"too deep, and cut off", strings.Repeat(`{"a":`, 1_000_000), "the message nests too deeply"},
		{"too deep, with brackets in text", `{"params":["\\",` + strings.Repeat("[", maxDepth) + `]}`, "the message nests too deeply"},
		{"method is a number", `{"method":7}`, "method is not text"},
		{"method is null", `{"method":{"a":1}}`, "method is not text"},

		{"a member twice", `{"method":"tools/list","method":"tools/call"}`, `duplicate field "method"`},
		{"a member twice, escaped", `{"method":"tools/list","m\u0065thod":"tools/call"}`, `duplicate field "method"`},
		{"id twice", `{"id":1,"id":1}`, `duplicate field "id"`},
		{"a member in another case", `{"Method":"tools/call"}`, "the message has a member that JSON-RPC 2.0 does not know; names are case-sensitive"},
		{"both cases", `{"method":"tools/list","METHOD":"tools/call"}`, "the message has the same name twice, in different case"},
		{"an unknown member", `{"method":"ping","extra":1}`, "the message has a member that JSON-RPC 2.0 does not know; names are case-sensitive"},

		{"name twice", `{"params":{"name":"a","name":"b"}}`, `duplicate field "name"`},
		{"arguments twice", `{"params":{"arguments":{},"arguments":{"a":1}}}`, `duplicate field "arguments"`},
		{"name in another case", `{"params":{"Name":"a"}}`, `the message says "Name" where "name" is meant; names are case-sensitive`},
		{"arguments in another case", `{"params":{"ARGUMENTS":{}}}`, `the message says "ARGUMENTS" where "arguments" is meant; names are case-sensitive`},
		{"arguments in both cases", `{"params":{"arguments":{},"Arguments":{"a":1}}}`, either},
		{"arguments with a long s", `{"params":{"argument\u017f":{}}}`, "the message says \"argument\u017f\" where \"arguments\" is meant; names are case-sensitive"},
		{"both, one with a long s", `{"params":{"arguments":{},"argumentſ":{"a":1}}}`, either},
		{"any name in both cases", `{"params":{"other":1,"Other":2}}`, "the message has the same name twice, in different case"},
		{"_meta twice", `{"params":{"_meta":{},"_meta":{}}}`, `duplicate field "_meta"`},
		{"_meta in another case", `{"params":{"_Meta":{}}}`, `the message says "_Meta" where "_meta" is meant; names are case-sensitive`},
		{"_meta is a list", `{"params":{"_meta":[]}}`, "the message is not a JSON object"},
		{"progressToken twice", `{"params":{"_meta":{"progressToken":1,"progressToken":2}}}`, `duplicate field "progressToken"`},
		{"progressToken with a Kelvin sign", `{"params":{"_meta":{"progressTo` + "\u212a" + `en":1}}}`, "the message says \"progressTo\u212aen\" where \"progressToken\" is meant; names are case-sensitive"},
	} {
		m, err := parseMessage(http.MethodPost, []byte(row.body))
		if err == nil || err.Error() != row.want && (row.want != either || !strings.Contains(err.Error(), either)) {
			t.Errorf("%s: %+v, %v; want %s", row.name, m, err, row.want)
		}
	}
}

// Whatever the guard lets through, the tolerant reader behind it (names in any
// case, the last of two) understands as a strict reader does.
func FuzzMessage(f *testing.F) {
	for _, seed := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"a":1},"_meta":{"progressToken":1}}}`,
		`{"method":"a","Method":"b"}`, `{"params":{"name":"a","NAME":"b"}}`, `{"params":{"argument\u017f":1}}`, `{"method":null,"params":null}`, `[]`, `{"id":1,"id":2}`,
	} {
		f.Add([]byte(seed))
	}
	type reading struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
		Params struct {
			Name      string          `json:"name"`
			Arguments json.RawMessage `json:"arguments"`
			Meta      struct {
				ProgressToken json.RawMessage `json:"progressToken"`
			} `json:"_meta"`
		} `json:"params"`
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := parseMessage(http.MethodPost, body)
		if err != nil {
			return
		}
		var tolerant, strict reading
		if json.Unmarshal(body, &tolerant) != nil {
			return // it refuses what does not fit by itself
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &strict); err != nil || !reflect.DeepEqual(tolerant, strict) || tolerant.Method != m.Method {
			t.Errorf("%s\nguard    %+v\ntolerant %+v\nstrict   %+v, %v", body, m, tolerant, strict, err)
		}
	})
}

func TestDepth(t *testing.T) {
	for _, row := range []struct {
		text string
		want int
	}{
		{``, 0}, {`1`, 0}, {`{}`, 1}, {`[[]]`, 2}, {`[[],[]]`, 2}, {`{"a":[{"b":1}]}`, 3}, {`"[["`, 0}, {`"\"[["`, 0}, {`["\\",[]]`, 2}, {`["\\\"[["]`, 1},
		{`]]][`, 0}, {`"`, 0}, {`"\`, 0}, {`[[[`, 3}, // not JSON: what is said hardly matters, but it ends
	} {
		if got := depth([]byte(row.text)); got != row.want {
			t.Errorf("depth of %s = %d; want %d", row.text, got, row.want)
		}
	}
}

// Session ids hold nothing of their own: only the principal that one was made
// for can use it, and nobody can make one up.
func TestSessionIDs(t *testing.T) {
	key := []byte("a key")
	bot := action.Principal{Issuer: "https://idp", Subject: "bot", Username: "bot", Groups: []string{"agents"}}
	mine := sessions{key: key, principal: bot}
	id := mine.Generate()
	if again := mine.Generate(); again == id {
		t.Error("two sessions have the same id")
	}

	later := bot
	later.Groups, later.Username = nil, "renamed"
	for name, s := range map[string]sessions{"its own": mine, "in other groups now": {key, later}} {
		if terminated, err := s.Validate(id); terminated || err != nil {
			t.Errorf("%s: %v, %v", name, terminated, err)
		}
		if notAllowed, err := s.Terminate(id); notAllowed || err != nil {
			t.Errorf("%s ends it: %v, %v", name, notAllowed, err)
		}
	}

	other := bot
	other.Subject = "other"
	elsewhere := bot
	elsewhere.Issuer = "https://idp2"
	shifted := action.Principal{Issuer: "https://idp\nbot", Subject: ""}
	for name, s := range map[string]sessions{
		"another subject": {key, other}, "another issuer": {key, elsewhere}, "another key": {[]byte("b key"), bot}, "nobody": {key, action.Principal{}}, "names cut elsewhere": {key, shifted},
	} {
		if _, err := s.Validate(id); err == nil {
			t.Errorf("%s uses it", name)
		}
		if _, err := s.Terminate(id); err == nil {
			t.Errorf("%s ends it", name)
		}
	}

	raw, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), raw...)
	flipped[0] ^= 1
	tail := append([]byte(nil), raw...)
	tail[31] ^= 1
	for name, forged := range map[string]string{
		"empty": "", "not base64": "???", "another nonce": base64.RawURLEncoding.EncodeToString(flipped), "another end": base64.RawURLEncoding.EncodeToString(tail),
		"cut": base64.RawURLEncoding.EncodeToString(raw[:31]), "longer": base64.RawURLEncoding.EncodeToString(append(raw[:32:32], 0)), "only a nonce": base64.RawURLEncoding.EncodeToString(raw[:16]),
		"padded": id + "=", "with a space": id + " ", "zeros": base64.RawURLEncoding.EncodeToString(make([]byte, 32)),
	} {
		if _, err := mine.Validate(forged); err == nil {
			t.Errorf("%s: %q is taken for a session", name, forged)
		}
	}
}

func TestBearer(t *testing.T) {
	for _, row := range []struct {
		name    string
		headers []string
		want    string // empty is an error
	}{
		{"a token", []string{"Bearer abc"}, "abc"},
		{"in another case", []string{"bEARER abc"}, "abc"},
		{"with spaces", []string{"Bearer  abc "}, "abc"},
		{"none", nil, ""},
		{"two", []string{"Bearer abc", "Bearer def"}, ""},
		{"another scheme", []string{"Basic abc"}, ""},
		{"no scheme", []string{"abc"}, ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/mcp", nil)
		r.Header["Authorization"] = row.headers
		if got, err := bearer(r); got != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%s: %q, %v", row.name, got, err)
		}
	}
}

// A browser that was tricked sends another Host, or says where it comes from.
func TestCheckHost(t *testing.T) {
	s := &Server{Config: Config{URL: "https://countersign.example.com/mcp", AllowedHosts: []string{"localhost", "::1"}, AllowedOrigins: []string{"https://console.example.com"}}}
	served := s.checkHost(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, row := range []struct {
		host, origin string
		want         int
	}{
		{"countersign.example.com", "", 200},
		{"countersign.example.com:8080", "", 200},
		{"localhost:8080", "", 200},
		{"[::1]:8080", "", 200},
		{"[::1]", "", 200},
		{"countersign.example.com", "https://countersign.example.com", 200},
		{"countersign.example.com", "https://console.example.com", 200},
		{"evil.example.com", "", 403},
		{"evil.example.com:8080", "https://countersign.example.com", 403},
		{"127.0.0.1:8080", "", 403},
		{"countersign.example.com.evil.com", "", 403},
		{"", "", 403},
		{"countersign.example.com", "http://countersign.example.com", 403},
		{"countersign.example.com", "https://countersign.example.com:8443", 403},
		{"countersign.example.com", "https://evil.example.com", 403},
		{"countersign.example.com", "null", 403},
	} {
		r := httptest.NewRequest(http.MethodPost, "/mcp", nil)
		r.Host = row.host
		if row.origin != "" {
			r.Header.Set("Origin", row.origin)
		}
		w := httptest.NewRecorder()
		served.ServeHTTP(w, r)
		if w.Code != row.want {
			t.Errorf("host %q, origin %q: %d; want %d", row.host, row.origin, w.Code, row.want)
		}
	}
}

type down struct{ error }

func (down) Unavailable() bool { return true }

type refusing struct{ error }

func (r refusing) Authenticate(context.Context, string) (action.Principal, []string, error) {
	return action.Principal{}, nil, r.error
}

// The challenge says where to get a token (RFC 9728), with which scopes, and nothing
// about the one that was refused; an issuer that is down is no reason to throw a
// token away.
func TestChallenge(t *testing.T) {
	const why = "why it was refused"
	f := newFront(t, func(f *front) { f.Scopes = Scopes{Change: "change"} })
	metadata := `Bearer resource_metadata="` + strings.TrimSuffix(f.url, "/mcp") + `/.well-known/oauth-protected-resource/mcp"`
	for _, row := range []struct {
		name, token string
		err         error
		code        int
		challenge   string
	}{
		{"no token", "", nil, 401, metadata + `, scope="change"`},
		{"a refused token", "x", errors.New(why), 401, metadata + `, error="invalid_token", scope="change"`},
		{"the issuer is down", "x", down{errors.New(why)}, 503, ""},
	} {
		f.Authenticator = refusing{row.err}
		r := f.send(row.token, `{}`)
		if r.status != row.code || r.header.Get("WWW-Authenticate") != row.challenge || strings.Contains(r.body, "why") {
			t.Errorf("%s: %+v", row.name, r)
		}
		if (r.header.Get("Retry-After") != "") != (row.code == 503) {
			t.Errorf("%s: Retry-After %q", row.name, r.header.Get("Retry-After"))
		}
	}
}

// What a token must be for is read from the body, is asked for all at once, and is
// the same for a prompt that reads as for the tools that it calls.
func TestScopes(t *testing.T) {
	f := newFront(t, func(f *front) {
		f.Authenticator = tokens{"none": nil, "reader": {"mcp:read", "openid"}, "changer": {"mcp:change"}, "both": {"mcp:change", "mcp:read"}, "near": {"mcp:read:all", "mcp", "mcp:read mcp:change"}}
		f.Scopes = Scopes{Read: "mcp:read", Change: "mcp:change"}
	})
	const read, both = "mcp:read", "mcp:read mcp:change"
	prompt := `"name":"rollback","arguments":{"kind":"deployment","name":"web","namespace":"shop"}`
	for _, row := range []struct {
		name, token string
		send        func(token string) reply
		lacks       string
	}{
		{"a list of tools", "none", func(k string) reply { return f.modern(k, "tools/list", "", "", "") }, ""},
		{"a read", "none", func(k string) reply { return f.call(k, "list_namespaces", `{}`, "") }, read},
		{"a read", "near", func(k string) reply { return f.call(k, "list_namespaces", `{}`, "") }, read},
		{"a read", "changer", func(k string) reply { return f.call(k, "list_namespaces", `{}`, "") }, read},
		{"a read", "reader", func(k string) reply { return f.call(k, "list_namespaces", `{}`, "") }, ""},
		{"a change", "none", func(k string) reply { return f.call(k, "scale_deployment", scale, "") }, both},
		{"a change", "reader", func(k string) reply { return f.call(k, "scale_deployment", scale, "") }, both},
		{"a change", "changer", func(k string) reply { return f.call(k, "scale_deployment", scale, "") }, both},
		{"a change", "both", func(k string) reply { return f.call(k, "scale_deployment", scale, "") }, ""},
		{"a change that the headers call a read", "reader", func(k string) reply {
			return f.call(k, "scale_deployment", scale, "", "Mcp-Name", "list_namespaces")
		}, both},
		{"a change that the headers call a list", "reader", func(k string) reply {
			return f.call(k, "scale_deployment", scale, "", "Mcp-Method", "tools/list", "Mcp-Name", "")
		}, both},
		{"a change in a session", "reader", func(k string) reply {
			return f.send(k, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"scale_deployment","arguments":`+scale+`}}`, headerSession, f.initialize(k, "2025-06-18"))
		}, both},
		{"to withdraw a question", "reader", func(k string) reply { return f.call(k, "cancel_operation", `{"op":"x"}`, "") }, both},
		{"a tool that there is none of", "reader", func(k string) reply { return f.call(k, "approve_everything", `{}`, "") }, both},
		{"a prompt", "none", func(k string) reply { return f.modern(k, "prompts/get", "rollback", prompt, "") }, read},
		{"a resource", "none", func(k string) reply {
			return f.modern(k, "resources/read", "countersign://policy", `"uri":"countersign://policy"`, "")
		}, read},
		{"a resource", "reader", func(k string) reply {
			return f.modern(k, "resources/read", "countersign://policy", `"uri":"countersign://policy"`, "")
		}, ""},
	} {
		before := len(f.store.of(audit.CallRefused))
		r := row.send(row.token)
		want := ""
		if row.lacks != "" {
			want = f.challenge("insufficient_scope", strings.Fields(row.lacks))
		}
		if (r.status == 403) != (row.lacks != "") || r.header.Get("WWW-Authenticate") != want || want != "" && !strings.Contains(want, `error="insufficient_scope", scope="`+row.lacks+`"`) {
			t.Errorf("%s as %s: %+v; want %q", row.name, row.token, r, want)
		}
		if row.lacks == "" && r.status != 200 {
			t.Errorf("%s as %s: %+v", row.name, row.token, r)
		}
		if got := len(f.store.of(audit.CallRefused)) - before; row.lacks != "" && got != 1 {
			t.Errorf("%s as %s: %d records", row.name, row.token, got)
		}
	}
	for _, path := range []string{"/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"} {
		r := f.do(http.MethodGet, strings.TrimSuffix(f.url, "/mcp")+path, "", "")
		var metadata struct {
			Resource string
			Scopes   []string `json:"scopes_supported"`
		}
		if err := json.Unmarshal([]byte(r.body), &metadata); err != nil || metadata.Resource != f.url || !reflect.DeepEqual(metadata.Scopes, strings.Fields(both)) {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

// Each principal and each address has its own measure. What is refused is one record
// and a number, however much of it there is.
func TestRates(t *testing.T) {
	const list = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_namespaces","arguments":{}}}`
	f := newFront(t, func(f *front) {
		f.principals = newBuckets(1, 5)
		f.addresses = newBuckets(1, 500)
		f.strangers = newBuckets(1, 3)
		f.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	count := func(n int, token, from string) map[int]int {
		got := map[int]int{}
		for range n {
			r := f.send(token, list, "X-Forwarded-For", from)
			got[r.status]++
			if (r.status == 429) != (r.header.Get("Retry-After") == "1") {
				t.Errorf("%+v", r)
			}
		}
		return got
	}
	served := 404 // by mcp-go, which misses a session
	if got := count(200, "bot", "192.0.2.1"); got[served] < 5 || got[served] > 7 || got[429] != 200-got[served] {
		t.Errorf("one principal: %v", got)
	}
	if got := count(5, "other", "192.0.2.1"); got[served] != 5 {
		t.Errorf("another at the same address: %v", got)
	}
	if got := count(400, "wrong", "192.0.2.1"); got[401] < 3 || got[401] > 6 || got[401]+got[429] != 400 {
		t.Errorf("tokens that are refused: %v", got)
	}
	f.principals = newBuckets(1000, 1000)
	if got := count(10, "bot", "192.0.2.1"); got[429] < 9 {
		t.Errorf("the address has had its measure: %v", got)
	}
	if got := count(10, "bot", "192.0.2.2"); got[served] != 10 {
		t.Errorf("another address: %v", got)
	}
	limited := f.store.of(audit.RateLimited)
	if len(limited) < 5 || len(limited) > 15 || limited[0].Principal == nil || limited[0].Source.IP != "192.0.2.1" {
		t.Errorf("%d records, %+v", len(limited), limited)
	}
}

// A caller's address is what the last proxy that is trusted says; nobody else is
// believed.
func TestAddress(t *testing.T) {
	s := &Server{Config: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/64")}}}
	for _, row := range []struct {
		peer      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:1", nil, "192.0.2.1"},
		{"192.0.2.1:1", []string{"198.51.100.1"}, "192.0.2.1"},
		{"10.0.0.1:1", nil, "10.0.0.1"},
		{"10.0.0.1:1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"[::ffff:10.0.0.1]:1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"[fd00::1]:1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"10.0.0.1:1", []string{"203.0.113.9, 198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1", []string{"203.0.113.9", "198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1", []string{"203.0.113.9, 198.51.100.1 , 10.0.0.2"}, "198.51.100.1"},
		{"10.0.0.1:1", []string{"10.0.0.3,10.0.0.2"}, "10.0.0.3"},
		{"10.0.0.1:1", []string{"198.51.100.1, nonsense"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{""}, "10.0.0.1"},
		{"@", nil, ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/mcp", nil)
		r.RemoteAddr, r.Header["X-Forwarded-For"] = row.peer, row.forwarded
		if got := s.address(r); got != row.want {
			t.Errorf("%s, for %q: %s; want %s", row.peer, row.forwarded, got, row.want)
		}
	}
	for ip, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "::ffff:192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "": ""} {
		if got := networkOf(ip); got != want {
			t.Errorf("the network of %s is %s; want %s", ip, got, want)
		}
	}
}

// Those who come while too many are known share a bucket; a full one is forgotten.
func TestBucketsAreBounded(t *testing.T) {
	b := newBuckets(1, 2)
	for i := range 2 * maxBuckets {
		b.take(strconv.Itoa(i))
	}
	if len(b.by) > maxBuckets {
		t.Errorf("%d are known", len(b.by))
	}
	if b.take("one more") == 0 {
		t.Error("whoever comes last has a measure of its own")
	}
	b.by["used"] = rate.NewLimiter(0.001, 2)
	b.by["used"].Allow()
	b.bucket("new", time.Now().Add(time.Minute))
	if _, kept := b.by["used"]; !kept || len(b.by) > 2 {
		t.Errorf("%d are known", len(b.by))
	}
}

// BenchmarkGuard is what a message costs before mcp-go sees it.
func BenchmarkGuard(b *testing.B) {
	s := New(Config{
		Gate: &gate.Gate{}, Authenticator: tokens{"bot": {"r", "c"}}, Log: slog.New(slog.DiscardHandler), URL: "https://countersign.example.com/mcp",
		SessionKey: []byte("key"), Scopes: Scopes{Read: "r", Change: "c"}, PerPrincipal: 1 << 30, PerAddress: 1 << 30,
	})
	id := sessions{key: s.SessionKey, principal: action.Principal{Issuer: "https://idp", Subject: "bot"}}.Generate()
	guarded := s.checkHost(s.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	body := []byte(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"scale_deployment","arguments":` + scale + `,"_meta":{"progressToken":1}}}`)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "https://countersign.example.com/mcp", bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer bot")
		r.Header.Set(headerSession, id)
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatal(w.Code, w.Body)
		}
	}
}
