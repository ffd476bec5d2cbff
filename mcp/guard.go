package mcp

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

const (
	// maxBody bounds a tool call; the largest thing in one is a manifest.
	maxBody = 4 << 20
	// maxOther bounds every other message: mcp-go keeps parts of some.
	maxOther = 64 << 10
	// maxDepth bounds how deep JSON may nest before anything parses it.
	maxDepth = 64
	// sessionIdle is when mcp-go forgets what it keeps of a session.
	sessionIdle = 30 * time.Minute

	headerSession = "Mcp-Session-Id"
	headerVersion = "Mcp-Protocol-Version"
)

// Handler serves the MCP endpoint and the metadata of RFC 9728. The order is
// fixed: host and origin, token, size, shape, session; only then mcp-go.
func (s *Server) Handler() http.Handler {
	endpoint, _ := url.Parse(s.URL)
	streamable := server.NewStreamableHTTPServer(s.mcp,
		server.WithSessionIdManagerResolver(sessionResolver{s.SessionKey}),
		server.WithSessionIdleTTL(sessionIdle),
		// No server-initiated messages are sent outside an answer, so no stream
		// is there for one client's messages to leak into another's.
		server.WithDisableStreaming(true),
		server.WithDisableLocalhostProtection(true), // checkHost does it, also behind a proxy
		server.WithStreamableHTTPLogger(s.Log),
	)
	metadata := server.NewProtectedResourceMetadataHandler(server.ProtectedResourceMetadataConfig{
		Resource: s.URL, AuthorizationServers: s.AuthorizationServers,
		BearerMethodsSupported: []string{"header"}, ResourceName: "Countersign",
	})
	mux := http.NewServeMux()
	mux.Handle(endpoint.Path, s.guard(streamable))
	mux.Handle("GET "+server.ProtectedResourceMetadataPath(s.URL), metadata)
	mux.Handle("GET /.well-known/oauth-protected-resource", metadata)
	return s.checkHost(mux)
}

// checkHost refuses what a browser was tricked into sending: another Host
// (DNS rebinding) or an Origin that nobody listed.
func (s *Server) checkHost(next http.Handler) http.Handler {
	endpoint, _ := url.Parse(s.URL)
	hosts := append([]string{endpoint.Hostname()}, s.AllowedHosts...)
	origins := append([]string{endpoint.Scheme + "://" + endpoint.Host}, s.AllowedOrigins...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !slices.Contains(hosts, strings.Trim(host, "[]")) {
			http.Error(w, "this host name is not served here; the operator can add it to allowedHosts", http.StatusForbidden)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && !slices.Contains(origins, origin) {
			http.Error(w, "this origin is not served here; the operator can add it to allowedOrigins", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := caller{source: audit.Source{Transport: "http", IP: remoteIP(r)}}
		token, err := bearer(r)
		if err == nil {
			c.principal, err = s.Authenticator.Authenticate(r.Context(), token)
		}
		if err != nil {
			s.Gate.LoginRefused(c.source, err)
			s.challenge(w, r, err)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, r, nil, c, http.StatusRequestEntityTooLarge, mcpgo.INVALID_REQUEST, "the request is larger than 4 MiB or broke off; send less in one call")
			return
		}
		m, err := parseMessage(r.Method, body)
		if err != nil {
			s.refuse(w, r, m.ID, c, http.StatusBadRequest, mcpgo.INVALID_REQUEST, err.Error())
			return
		}
		if m.Method != string(mcpgo.MethodToolsCall) && len(body) > maxOther {
			s.refuse(w, r, m.ID, c, http.StatusRequestEntityTooLarge, mcpgo.INVALID_REQUEST, "the message is larger than 64 KiB, and only tool calls may be")
			return
		}
		session := r.Header.Get(headerSession)
		if r.Method == http.MethodDelete && session == "" {
			s.refuse(w, r, nil, c, http.StatusBadRequest, mcpgo.INVALID_REQUEST, "DELETE ends a session, and none is named")
			return
		}
		if session != "" && !validSession(s.SessionKey, c.principal, session) {
			// Also somebody else's session: it is not found, as if it did not exist.
			s.refuse(w, r, m.ID, c, http.StatusNotFound, mcpgo.INVALID_REQUEST, "there is no such session; initialize again")
			return
		}
		modern := m.modern || mcpgo.IsModernProtocol(r.Header.Get(headerVersion))
		if m.Method == string(mcpgo.MethodNotificationCancelled) && (session == "" || modern) {
			// Without a session mcp-go knows a call in flight by its bare id, and
			// would cancel another client's. Closing the connection cancels a wait.
			w.WriteHeader(http.StatusAccepted)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// challenge answers a request without a valid token (RFC 6750, section 3). It
// gives no detail: a forger learns nothing from it, and the log has the reason.
func (s *Server) challenge(w http.ResponseWriter, r *http.Request, err error) {
	var issuer interface{ Unavailable() bool }
	if errors.As(err, &issuer) && issuer.Unavailable() {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the token's issuer cannot be asked now; try again", http.StatusServiceUnavailable)
		return
	}
	challenge := `Bearer resource_metadata="` + s.metadataURL() + `"`
	if r.Header.Get("Authorization") != "" {
		challenge += `, error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	http.Error(w, "a valid bearer token is needed", http.StatusUnauthorized)
}

// refuse answers an authenticated or not yet authenticated request that cannot
// be taken, and records it when it is known whose it was.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, id json.RawMessage, c caller, status, code int, text string) {
	if c.principal.Subject != "" {
		s.Gate.Refused(c.principal, c.source, errors.New(text))
	}
	if id == nil {
		id = json.RawMessage("null")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{
		"jsonrpc": "2.0", "id": id, "error": map[string]any{"code": code, "message": text},
	})
}

func (s *Server) metadataURL() string {
	endpoint, _ := url.Parse(s.URL)
	endpoint.Path = server.ProtectedResourceMetadataPath(s.URL)
	return endpoint.String()
}

func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", errors.New("not exactly one Authorization header")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", errors.New("the Authorization header is not a bearer token")
	}
	return strings.TrimSpace(token), nil
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// message is what the guard reads of a JSON-RPC message.
type message struct {
	ID     json.RawMessage
	Method string
	modern bool
}

// members are those of JSON-RPC 2.0. mcp-go matches names in any case and takes
// the last of two, so a message that means two things to two readers is refused.
var members = []string{"jsonrpc", "id", "method", "params", "result", "error"}

// parseMessage checks the outside of a message: one object, no batch, no
// excessive nesting, and no name twice or in another case. Arguments are
// checked by the tool that they are for.
func parseMessage(httpMethod string, body []byte) (message, error) {
	var m message
	if httpMethod != http.MethodPost {
		return m, nil
	}
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) > 0 && trimmed[0] == '[' {
		return m, errors.New("batches are not served: send one message at a time")
	}
	if depth(body) > maxDepth {
		return m, errors.New("the message nests too deeply")
	}
	outer, err := object(body)
	if err != nil {
		return m, err
	}
	for name := range outer {
		if !slices.Contains(members, name) {
			return m, errors.New("the message has a member that JSON-RPC 2.0 does not know; names are case-sensitive")
		}
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(outer["method"], &m.Method); len(outer["method"]) > 0 && err != nil {
		return m, errors.New("method is not text")
	}
	m.ID = outer["id"]
	if params := bytes.TrimSpace(outer["params"]); len(params) > 0 && params[0] == '{' {
		inner, err := object(params)
		if err != nil {
			return m, err
		}
		var meta map[string]json.RawMessage
		if raw := inner["_meta"]; len(raw) > 0 && string(raw) != "null" {
			if meta, err = object(raw); err != nil {
				return m, err
			}
		}
		_, m.modern = meta[mcpgo.MetaKeyProtocolVersion]
	}
	return m, nil
}

// spelling is how the names that mcp-go reads, in whatever case, are written.
var spelling = map[string]string{
	"name": "name", "arguments": "arguments", "_meta": "_meta", "requestid": "requestId",
	"progresstoken": "progressToken", "cursor": "cursor", "uri": "uri",
}

// object decodes one level of an object and refuses names that are the same but for case.
func object(data []byte) (map[string]json.RawMessage, error) {
	var out map[string]json.RawMessage
	strict, err := kjson.UnmarshalStrict(data, &out)
	if err != nil {
		return nil, errors.New("the message is not a JSON object")
	}
	if len(strict) > 0 {
		return nil, errors.Join(strict...)
	}
	if out == nil {
		return nil, errors.New("the message is null where a JSON object is expected")
	}
	seen := make(map[string]bool, len(out))
	for name := range out {
		folded := strings.ToLower(strings.Map(fold, name))
		if seen[folded] {
			return nil, errors.New("the message has the same name twice, in different case")
		}
		seen[folded] = true
		if exact, known := spelling[folded]; known && name != exact {
			return nil, fmt.Errorf("the message says %q where %q is meant; names are case-sensitive", clip(name, 40), exact)
		}
	}
	return out, nil
}

// fold gives the letters one form that encoding/json takes for the same: not
// only A and a, but also ſ and s.
func fold(r rune) rune {
	first := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		first = min(first, f)
	}
	return first
}

// depth is how deep a JSON text nests, without parsing it.
func depth(data []byte) int {
	deepest, level := 0, 0
	inString := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}

// sessionResolver gives mcp-go session ids that belong to one principal: a
// nonce and an HMAC over nonce and principal. Nothing about them is stored.
type sessionResolver struct{ key []byte }

func (r sessionResolver) ResolveSessionIdManager(req *http.Request) server.SessionIdManager {
	c, _ := req.Context().Value(callerKey{}).(caller)
	return sessions{key: r.key, principal: c.principal}
}

type sessions struct {
	key       []byte
	principal action.Principal
}

func (s sessions) Generate() string {
	var nonce [16]byte
	rand.Read(nonce[:])
	return base64.RawURLEncoding.EncodeToString(append(nonce[:], sessionMAC(s.key, s.principal, nonce[:])...))
}

func (s sessions) Validate(id string) (terminated bool, err error) {
	if !validSession(s.key, s.principal, id) {
		return false, errors.New("no such session")
	}
	return false, nil
}

func (s sessions) Terminate(id string) (notAllowed bool, err error) {
	_, err = s.Validate(id)
	return false, err
}

func validSession(key []byte, p action.Principal, id string) bool {
	raw, err := base64.RawURLEncoding.DecodeString(id)
	return err == nil && len(raw) == 32 && hmac.Equal(raw[16:], sessionMAC(key, p, raw[:16]))
}

func sessionMAC(key []byte, p action.Principal, nonce []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(nonce)
	h.Write([]byte(p.Key()))
	return h.Sum(nil)[:16]
}
