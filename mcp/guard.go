package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"countersign/action"
	"countersign/audit"
)

const (
	// maxBody bounds a tool call; the largest thing in one is a manifest.
	maxBody = 4 << 20
	// maxOther bounds every other message: mcp-go keeps parts of some.
	maxOther = 64 << 10
	// sessionIdle is when mcp-go forgets what it keeps of a session.
	sessionIdle = 30 * time.Minute

	headerSession = "Mcp-Session-Id"
	headerVersion = "Mcp-Protocol-Version"
)

// Handler serves the MCP endpoint, the metadata of RFC 9728 and the health of the
// server. Health is outside of what follows: a kubelet asks the pod's address.
func (s *Server) Handler() http.Handler {
	endpoint, _ := url.Parse(s.URL)
	streamable := server.NewStreamableHTTPServer(s.mcp,
		server.WithSessionIdManagerResolver(sessionResolver{s.SessionKey}),
		server.WithSessionIdleTTL(s.forgetAfter),
		// No server-initiated messages are sent outside an answer, so no stream
		// is there for one client's messages to leak into another's.
		server.WithDisableStreaming(true),
		server.WithDisableLocalhostProtection(true), // checkHost does it, also behind a proxy
		server.WithStreamableHTTPLogger(slog.New(mild{s.Log.Handler()})),
	)
	metadata := server.NewProtectedResourceMetadataHandler(server.ProtectedResourceMetadataConfig{
		Resource: s.URL, AuthorizationServers: s.AuthorizationServers, ScopesSupported: s.Scopes.all(),
		BearerMethodsSupported: []string{"header"}, ResourceName: "Countersign",
	})
	served := http.NewServeMux()
	served.Handle(endpoint.Path, s.guard(streamable))
	served.Handle("GET "+server.ProtectedResourceMetadataPath(s.URL), metadata)
	served.Handle("GET /.well-known/oauth-protected-resource", metadata)

	all := http.NewServeMux()
	all.Handle("/", s.checkHost(served))
	all.HandleFunc("GET /healthz", healthz)
	all.HandleFunc("GET /readyz", s.readyz)
	return all
}

var (
	errTooLarge      = errors.New("the request is larger than 4 MiB; send less in one call")
	errOtherTooLarge = errors.New("the message is larger than 64 KiB, and only tool calls may be")
)

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

// guard takes every request through these steps, in this order, before mcp-go
// sees it. A step answers the request, or lets it go on.
func (s *Server) guard(next http.Handler) http.Handler {
	steps := []func(*visit) *answer{
		s.addressRate,
		s.login,
		s.principalRate,
		s.place,
		s.read, // size, depth and shape
		s.scope,
		s.session,
		dropCancel,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.running.enter() {
			w.Header().Set("Retry-After", "5")
			w.Header().Set("Connection", "close")
			http.Error(w, "the server is stopping; try again", http.StatusServiceUnavailable)
			return
		}
		defer s.running.leave()
		v := &visit{w: w, r: r, caller: caller{source: audit.Source{Transport: "http", IP: s.address(r)}}}
		defer func() {
			s.places.leave(v.place)
			s.large.leave(v.large)
		}()
		for _, step := range steps {
			if a := step(v); a != nil {
				s.answer(v, a)
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(v.body))
		out := &flushed{ResponseWriter: w}
		ctx := context.WithValue(context.WithValue(r.Context(), callerKey{}, v.caller), flushedKey{}, out)
		next.ServeHTTP(out, r.WithContext(ctx))
		if v.message.Method == string(mcpgo.MethodInitialize) {
			s.opened.add(next, v.caller, w.Header().Get(headerSession))
		}
		if id := r.Header.Get(headerSession); r.Method == http.MethodDelete && validSession(s.SessionKey, v.principal, id) {
			s.deleted.add(id)
			s.endSession(v.principal, id)
		}
	})
}

// mild lets errors through as warnings. What mcp-go reports as an error any client can
// bring about by what it sends, or by going away; an operator looks for errors of the
// server, of which status shows the last.
type mild struct{ slog.Handler }

func (m mild) Handle(ctx context.Context, r slog.Record) error {
	r.Level = min(r.Level, slog.LevelWarn)
	return m.Handler.Handle(ctx, r)
}

// visit is a request on its way through the guard, with what the steps found out.
type visit struct {
	w http.ResponseWriter
	r *http.Request
	caller
	// place and large are under whose name the request is counted; empty until it is.
	place, large string
	body         []byte
	message      message
}

// answer is what a request gets that goes no further than a step of the guard.
type answer struct {
	status int
	text   string
	// challenge is what a client has to come back with (RFC 6750, section 3).
	challenge string
	// retry is how long it should wait before.
	retry time.Duration
	// record says that the step itself has not put it on record.
	record bool
}

// answer answers a request that is not let through.
func (s *Server) answer(v *visit, a *answer) {
	if a.record {
		s.Gate.Refused(v.principal, v.source, errors.New(a.text))
	}
	header := v.w.Header()
	if a.challenge != "" {
		header.Set("WWW-Authenticate", a.challenge)
	}
	if a.retry > 0 {
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(a.retry.Seconds()))))
	}
	switch {
	case a.status == http.StatusAccepted:
		v.w.WriteHeader(a.status)
	case v.principal.Subject == "": // who is not known yet is not told in JSON-RPC
		http.Error(v.w, a.text, a.status)
	default:
		header.Set("Content-Type", "application/json")
		v.w.WriteHeader(a.status)
		writeRefusal(v.w, v.message.ID, a.text)
	}
}

// refused is an answer that goes on record as it is.
func refused(status int, format string, args ...any) *answer {
	return &answer{status: status, text: fmt.Sprintf(format, args...), record: true}
}

// addressRate holds before anything is computed for a caller.
func (s *Server) addressRate(v *visit) *answer {
	return s.rate(v, s.addresses, networkOf(v.source.IP), "this address sends")
}

func (s *Server) principalRate(v *visit) *answer {
	return s.rate(v, s.principals, v.principal.Key(), "you send")
}

// place keeps one principal from taking all connections with bodies that do not end
// and calls that wait.
func (s *Server) place(v *visit) *answer {
	if key := v.principal.Key(); s.places.enter(key) {
		v.place = key
		return nil
	}
	return s.crowded(v, s.places, "requests of yours")
}

func (s *Server) crowded(v *visit, p *places, what string) *answer {
	a := &answer{status: http.StatusTooManyRequests, retry: time.Second, text: fmt.Sprintf("%d %s are open, and no more are served at once; wait until one of them is answered", p.most, what)}
	s.rateLimited(v, a.text)
	return a
}

func (s *Server) rate(v *visit, by *buckets, key, who string) *answer {
	wait := by.take(key)
	if wait == 0 {
		return nil
	}
	a := &answer{status: http.StatusTooManyRequests, retry: wait, text: who + " more requests than are served; wait as long as Retry-After says"}
	s.rateLimited(v, a.text)
	return a
}

// rateLimited records some of the requests that came too soon: a flood of them
// must not become one of the log.
func (s *Server) rateLimited(v *visit, text string) {
	if s.floods.take("") > 0 {
		s.flooded.Add(1)
		return
	}
	if n := s.flooded.Swap(0); n > 0 {
		text += fmt.Sprintf(" (and %d more since the last record of this kind)", n)
	}
	var p *action.Principal
	if v.principal.Subject != "" {
		p = &v.principal
	}
	s.Gate.RateLimited(p, v.source, errors.New(text))
}

// login finds out who calls. Its answers give no detail: a forger learns nothing
// from them, and the log has the reason. An address with too many refused tokens
// is told to wait, and cannot by that keep others at it from logging in.
func (s *Server) login(v *visit) *answer {
	token, err := bearer(v.r)
	if err == nil {
		v.principal, v.scopes, err = s.Authenticator.Authenticate(v.r.Context(), token)
	}
	if err == nil {
		return nil
	}
	s.Gate.LoginRefused(v.source, err)
	var issuer interface{ Unavailable() bool }
	if errors.As(err, &issuer) && issuer.Unavailable() {
		return &answer{status: http.StatusServiceUnavailable, retry: 5 * time.Second, text: "the token's issuer cannot be asked now; try again"}
	}
	if wait := s.strangers.take(networkOf(v.source.IP)); wait > 0 {
		return &answer{status: http.StatusTooManyRequests, retry: wait, text: "too many tokens from this address were refused"}
	}
	a := &answer{status: http.StatusUnauthorized, text: "a valid bearer token is needed", challenge: s.challenge("", s.Scopes.all())}
	if v.r.Header.Get("Authorization") != "" {
		a.challenge = s.challenge("invalid_token", s.Scopes.all())
	}
	return a
}

// challenge tells a client what token to come with, and where to get one.
func (s *Server) challenge(mistake string, scopes []string) string {
	endpoint, _ := url.Parse(s.URL)
	endpoint.Path = server.ProtectedResourceMetadataPath(s.URL)
	out := `Bearer resource_metadata="` + endpoint.String() + `"`
	if mistake != "" {
		out += `, error="` + mistake + `"`
	}
	if len(scopes) > 0 {
		out += `, scope="` + strings.Join(scopes, " ") + `"`
	}
	return out
}

// read takes the body in and looks at its outside. Of large ones only a few of one
// principal are held at once.
func (s *Server) read(v *visit) *answer {
	limited := http.MaxBytesReader(v.w, v.r.Body, maxBody)
	body, err := io.ReadAll(io.LimitReader(limited, maxOther+1))
	if err == nil && len(body) > maxOther {
		key := v.principal.Key()
		if !s.large.enter(key) {
			return s.crowded(v, s.large, fmt.Sprintf("requests of yours with more than %d bytes", maxOther))
		}
		v.large = key
		var rest []byte
		rest, err = io.ReadAll(limited)
		body = append(body, rest...)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return refused(http.StatusRequestEntityTooLarge, "%s", errTooLarge)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refused(http.StatusRequestTimeout, "the request did not arrive within %s", bodyWithin)
	case err != nil:
		return refused(http.StatusBadRequest, "the request broke off")
	}
	v.body = body
	if v.message, err = parseMessage(v.r.Method, body); err != nil {
		return refused(http.StatusBadRequest, "%s", err)
	}
	if v.message.Method != string(mcpgo.MethodToolsCall) && len(body) > maxOther {
		return refused(http.StatusRequestEntityTooLarge, "%s", errOtherTooLarge)
	}
	return nil
}

// scope looks whether the token is for what the message asks. That is read from
// the body, as mcp-go will: headers say what their sender likes.
func (s *Server) scope(v *visit) *answer {
	missing := s.missingScopes(v.caller, v.message.Method, v.message.Name)
	if missing == nil {
		return nil
	}
	a := refused(http.StatusForbidden, "the token lacks the scope for this: %s is needed", strings.Join(missing, " and "))
	a.challenge = s.challenge("insufficient_scope", missing)
	return a
}

// session lets nobody use another's session, and tells nobody that it exists.
func (s *Server) session(v *visit) *answer {
	id := v.r.Header.Get(headerSession)
	switch {
	case v.r.Method == http.MethodDelete && id == "":
		return refused(http.StatusBadRequest, "DELETE ends a session, and none is named")
	case id == "" || mcpgo.IsModernProtocol(v.message.version) || mcpgo.IsModernProtocol(v.r.Header.Get(headerVersion)):
		return nil // there is none, or the revision has none and the header means nothing
	case !validSession(s.SessionKey, v.principal, id) || s.deleted.has(id):
		return refused(http.StatusNotFound, "there is no such session; initialize again")
	}
	return nil
}

// dropCancel answers a cancel that is of no session. mcp-go would know the call
// by its bare id, and cancel another client's. Closing the connection ends a wait.
func dropCancel(v *visit) *answer {
	modern := v.message.modern || mcpgo.IsModernProtocol(v.r.Header.Get(headerVersion))
	if v.message.Method == string(mcpgo.MethodNotificationCancelled) && (modern || v.r.Header.Get(headerSession) == "") {
		return &answer{status: http.StatusAccepted}
	}
	return nil
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

// address is where a request comes from. A proxy that is trusted says for whom it
// asks; of several, the last that is no trusted proxy itself counts, because
// whoever it is wrote what stands before.
func (s *Server) address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		if !s.trusted(host) {
			break
		}
		if _, err := netip.ParseAddr(strings.TrimSpace(hop)); err != nil {
			break
		}
		host = strings.TrimSpace(hop)
	}
	return host
}

func (s *Server) trusted(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && slices.ContainsFunc(s.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(address.Unmap()) })
}
