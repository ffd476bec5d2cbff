package mcp

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	kjson "sigs.k8s.io/json"

	"countersign/action"
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

// The challenge says where to get a token (RFC 9728) and nothing about the one
// that was refused; an issuer that is down is no reason to throw a token away.
func TestChallenge(t *testing.T) {
	s := &Server{Config: Config{URL: "https://countersign.example.com/mcp"}}
	const metadata = `Bearer resource_metadata="https://countersign.example.com/.well-known/oauth-protected-resource/mcp"`
	for _, row := range []struct {
		name, authorization string
		err                 error
		code                int
		challenge           string
	}{
		{"no token", "", errors.New("why"), 401, metadata},
		{"a refused token", "Bearer x", errors.New("why: expired"), 401, metadata + `, error="invalid_token"`},
		{"the issuer is down", "Bearer x", down{errors.New("why")}, 503, ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/mcp", nil)
		if row.authorization != "" {
			r.Header.Set("Authorization", row.authorization)
		}
		w := httptest.NewRecorder()
		s.challenge(w, r, row.err)
		if w.Code != row.code || w.Header().Get("WWW-Authenticate") != row.challenge || strings.Contains(w.Body.String(), "why") {
			t.Errorf("%s: %d, %q, %s", row.name, w.Code, w.Header().Get("WWW-Authenticate"), w.Body)
		}
		if (w.Header().Get("Retry-After") != "") != (row.code == 503) {
			t.Errorf("%s: Retry-After %q", row.name, w.Header().Get("Retry-After"))
		}
	}
}
