package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"countersign/action"
)

const audience = "https://countersign.example.com/mcp"

// idp is a small OpenID Connect issuer: discovery and keys, nothing else.
type idp struct {
	*httptest.Server
	rsa  *rsa.PrivateKey
	down atomic.Bool  // for discovery
	lost atomic.Bool  // for keys
	asks atomic.Int64 // for discovery

	mu   sync.Mutex
	keys jose.JSONWebKeySet
}

func start(t *testing.T, server func(http.Handler) *httptest.Server) *idp {
	t.Helper()
	p := &idp{rsa: newRSA(t)}
	p.publish(p.rsa.Public(), "key-1")
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if p.asks.Add(1); p.down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		// It offers HMAC and none, as a careless issuer might: it is not asked.
		json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"}})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		if p.lost.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		json.NewEncoder(w).Encode(p.keys)
	})
	p.Server = server(mux)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(p.Close)
	return p
}

func (p *idp) publish(public any, kid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys.Keys = append(p.keys.Keys, jose.JSONWebKey{Key: public, KeyID: kid, Use: "sig"})
}

func newRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// claims are good ones; changes are laid over them, and a nil takes one away.
func (p *idp) claims(changes map[string]any) map[string]any {
	now := time.Now()
	claims := map[string]any{"iss": p.URL, "aud": audience, "sub": "bot-1", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "groups": []string{"agents"}}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

func (p *idp) token(t *testing.T, changes map[string]any) string {
	t.Helper()
	return sign(t, jose.RS256, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, p.claims(changes), nil)
}

func sign(t *testing.T, algorithm jose.SignatureAlgorithm, key any, claims any, options *jose.SignerOptions) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func authenticator(t *testing.T, issuers ...Issuer) *Authenticator {
	t.Helper()
	a, err := New(issuers, audience)
	if err != nil {
		t.Fatal(err)
	}
	a.Log = slog.New(slog.DiscardHandler)
	return a
}

func TestGoodTokens(t *testing.T) {
	p := start(t, httptest.NewServer)
	groups := Issuer{URL: p.URL, GroupsClaim: "groups"}
	for _, row := range []struct {
		name   string
		issuer Issuer
		claims map[string]any
		want   action.Principal
	}{
		{"plain", Issuer{URL: p.URL}, nil, action.Principal{Username: "bot-1", Groups: []string{}}},
		{"one of several audiences", Issuer{URL: p.URL}, map[string]any{"aud": []string{"other", audience}}, action.Principal{Username: "bot-1", Groups: []string{}}},
		{"valid since a moment", Issuer{URL: p.URL}, map[string]any{"nbf": time.Now().Add(-time.Minute).Unix()}, action.Principal{Username: "bot-1", Groups: []string{}}},
		{"groups as a list", groups, map[string]any{"groups": []string{"a", "b"}}, action.Principal{Username: "bot-1", Groups: []string{"a", "b"}}},
		{"groups as an empty list", groups, map[string]any{"groups": []string{}}, action.Principal{Username: "bot-1", Groups: []string{}}},
		{"groups as text", groups, map[string]any{"groups": "a b"}, action.Principal{Username: "bot-1", Groups: []string{"a b"}}},
		{"user name from a claim", Issuer{URL: p.URL, UsernameClaim: "email"}, map[string]any{"email": "bot@example.com"}, action.Principal{Username: "bot@example.com", Groups: []string{}}},
		{"groups of a realm", Issuer{URL: p.URL, GroupsClaim: "realm_access.roles"}, map[string]any{"realm_access": map[string]any{"roles": []string{"a"}}}, action.Principal{Username: "bot-1", Groups: []string{"a"}}},
		{"groups of a client whose name has dots", Issuer{URL: p.URL, GroupsClaim: "resource_access.https://countersign.example.com/mcp.roles"},
			map[string]any{"resource_access": map[string]any{"https://countersign.example.com/mcp": map[string]any{"roles": "a"}}}, action.Principal{Username: "bot-1", Groups: []string{"a"}}},
		{"groups in a claim that is a URL", Issuer{URL: p.URL, GroupsClaim: "https://example.com/groups"}, map[string]any{"https://example.com/groups": []string{"a"}, "https://example": map[string]any{"com/groups": "b"}}, action.Principal{Username: "bot-1", Groups: []string{"a"}}},
		{"a user name that is nested", Issuer{URL: p.URL, UsernameClaim: "ext.login"}, map[string]any{"ext": map[string]any{"login": "octocat"}}, action.Principal{Username: "octocat", Groups: []string{}}},
		{"for whom, nested", Issuer{URL: p.URL, OnBehalfOfClaim: "ext.owner"}, map[string]any{"ext": map[string]any{"owner": "anna"}}, action.Principal{Username: "bot-1", Groups: []string{}, OnBehalfOf: "anna"}},
		{"other claims are elsewhere", groups, map[string]any{"_claim_names": map[string]string{"roles": "src1"}, "_claim_sources": map[string]any{"src1": map[string]string{"endpoint": "https://graph.example/x"}}}, action.Principal{Username: "bot-1", Groups: []string{"agents"}}},
		{"prefixes, also before those of Kubernetes", Issuer{URL: p.URL, GroupsClaim: "groups", UsernamePrefix: "okta:", GroupsPrefix: "okta:"}, map[string]any{"sub": "system:x", "groups": []string{"system:masters", "b"}}, action.Principal{Subject: "system:x", Username: "okta:system:x", Groups: []string{"okta:system:masters", "okta:b"}}},
		{"for whom has no prefix", Issuer{URL: p.URL, UsernamePrefix: "okta:"}, map[string]any{"act": map[string]any{"sub": "devin"}}, action.Principal{Username: "okta:bot-1", Groups: []string{}, Client: "devin", OnBehalfOf: "bot-1"}},
		{"a service account of one of two clusters", Issuer{URL: p.URL, Kubernetes: true, UsernamePrefix: "east:", GroupsPrefix: "east:"}, map[string]any{"sub": "system:serviceaccount:agents:devin"},
			action.Principal{Subject: "system:serviceaccount:agents:devin", Username: "east:system:serviceaccount:agents:devin", Groups: []string{"east:system:serviceaccounts", "east:system:serviceaccounts:agents"}}},
		{"a confirmed e-mail address", Issuer{URL: p.URL, UsernameClaim: "email"}, map[string]any{"email": "bot@example.com", "email_verified": true}, action.Principal{Username: "bot@example.com", Groups: []string{}}},
		{"client from Entra ID", Issuer{URL: p.URL}, map[string]any{"appid": "7d2f"}, action.Principal{Username: "bot-1", Groups: []string{}, Client: "7d2f"}},
		{"client from Okta", Issuer{URL: p.URL}, map[string]any{"cid": "0oa1"}, action.Principal{Username: "bot-1", Groups: []string{}, Client: "0oa1"}},
		{"client from azp", Issuer{URL: p.URL}, map[string]any{"azp": "devin", "client_id": "other"}, action.Principal{Username: "bot-1", Groups: []string{}, Client: "devin"}},
		{"client from client_id", Issuer{URL: p.URL}, map[string]any{"client_id": "devin"}, action.Principal{Username: "bot-1", Groups: []string{}, Client: "devin"}},
		{"act: the subject is the person, the actor the agent", Issuer{URL: p.URL, UsernameClaim: "email"}, map[string]any{"email": "anna@example.com", "azp": "portal", "act": map[string]any{"sub": "devin", "act": map[string]any{"sub": "inner"}}},
			action.Principal{Username: "anna@example.com", Groups: []string{}, Client: "devin", OnBehalfOf: "anna@example.com"}},
		{"on behalf of, from a claim", Issuer{URL: p.URL, OnBehalfOfClaim: "owner"}, map[string]any{"owner": "anna", "act": map[string]any{"sub": "devin"}}, action.Principal{Username: "bot-1", Groups: []string{}, OnBehalfOf: "anna"}},
		{"a service account", Issuer{URL: p.URL, Kubernetes: true}, map[string]any{"sub": "system:serviceaccount:agents:devin", "groups": []string{"system:masters"}},
			action.Principal{Subject: "system:serviceaccount:agents:devin", Username: "system:serviceaccount:agents:devin", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:agents"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.want.Issuer = p.URL
			if row.want.Subject == "" {
				row.want.Subject = "bot-1"
			}
			got, _, err := authenticator(t, row.issuer).Authenticate(t.Context(), p.token(t, row.claims))
			if err != nil || !reflect.DeepEqual(got, row.want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, row.want)
			}
		})
	}
}

// forged are tokens that must not be accepted, each with what the log says.
func forged(t *testing.T, p *idp) map[string]struct{ token, want string } {
	good := p.token(t, nil)
	head, payload, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(payload, ".")
	raw := base64.RawURLEncoding.EncodeToString
	public, err := x509.MarshalPKIXPublicKey(p.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	mallory := newRSA(t)
	changed := func(name string, value any) string { return p.token(t, map[string]any{name: value}) }
	claims := p.claims(nil)

	return map[string]struct{ token, want string }{
		"no token":                    {"", "no token"},
		"not a JWT":                   {"not-a-token", "not a JWT"},
		"two parts":                   {head + "." + payload, "not a JWT"},
		"four parts":                  {good + ".x", "not a JWT"},
		"payload is not base64":       {head + ".%%%." + signature, "not a JWT: its payload is not base64url"},
		"payload is not JSON":         {head + "." + raw([]byte("hello")) + "." + signature, "not a JWT: its payload is not a JSON object"},
		"payload is a list":           {head + "." + raw([]byte("[]")) + "." + signature, "not a JWT: its payload is not a JSON object"},
		"header is not JSON":          {raw([]byte("hello")) + "." + payload + "." + signature, "not a JWT: its header is not a JSON object"},
		"oversized":                   {good + strings.Repeat("A", maxToken), "bytes; at most 16384 are read"},
		"oversized, well signed":      {changed("padding", strings.Repeat("x", maxToken)), "bytes; at most 16384 are read"},
		"another's issuer":            {changed("iss", "https://accounts.example.com"), "the token's issuer is not trusted"},
		"issuer with a slash":         {changed("iss", p.URL+"/"), "the token's issuer is not trusted"},
		"no issuer":                   {changed("iss", nil), "the token's issuer is not trusted"},
		"wrong audience":              {changed("aud", "https://other.example.com/mcp"), "expected audience"},
		"audience that begins so":     {changed("aud", audience+"/x"), "expected audience"},
		"several wrong audiences":     {changed("aud", []string{"a", "b"}), "expected audience"},
		"no audience":                 {changed("aud", nil), "expected audience"},
		"expired":                     {changed("exp", time.Now().Add(-time.Minute).Unix()), "the token expired at"},
		"never expires":               {changed("exp", nil), "the token has no exp"},
		"not yet valid":               {changed("nbf", time.Now().Add(time.Hour).Unix()), "the token is not valid before"},
		"no subject":                  {changed("sub", nil), "the token has no sub"},
		"empty subject":               {changed("sub", ""), "the token has no sub"},
		"subject is a number":         {changed("sub", 7), "failed to unmarshal claims"},
		"changed payload":             {head + "." + raw([]byte(strings.Replace(decoded(t, payload), "agents", "admins", 1))) + "." + signature, "failed to verify signature"},
		"a line break in it":          {head + "." + payload[:8] + "\n" + payload[8:] + "." + signature, "not a JWT: its payload is not base64url"},
		"audience in another case":    {p.token(t, map[string]any{"aud": nil, "AUD": audience}), `the token has "AUD"`},
		"two audiences":               {sign(t, jose.RS256, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, json.RawMessage(strings.TrimSuffix(decoded(t, payload), "}")+`,"aUd":"`+audience+`"}`), nil), `the token has "aUd"`},
		"a claim twice":               {sign(t, jose.RS256, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, json.RawMessage(strings.Replace(decoded(t, payload), "{", `{"sub":"admin",`, 1)), nil), "its payload says something twice"},
		"half a character":            {sign(t, jose.RS256, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, json.RawMessage(strings.Replace(decoded(t, payload), "bot-1", `\ud800`, 1)), nil), "a character that cannot be seen"},
		"no signature":                {head + "." + payload + ".", "failed to verify signature"},
		"alg none":                    {raw([]byte(`{"alg":"none"}`)) + "." + payload + ".", "unexpected signature algorithm"},
		"alg None":                    {raw([]byte(`{"alg":"None"}`)) + "." + payload + ".", "unexpected signature algorithm"},
		"alg none, signature kept":    {raw([]byte(`{"alg":"none","kid":"key-1"}`)) + "." + payload + "." + signature, "unexpected signature algorithm"},
		"no alg":                      {raw([]byte(`{"kid":"key-1"}`)) + "." + payload + "." + signature, "unexpected signature algorithm"},
		"HMAC with the public key":    {sign(t, jose.HS256, jose.JSONWebKey{Key: publicPEM, KeyID: "key-1"}, claims, nil), "unexpected signature algorithm"},
		"HMAC with its DER":           {sign(t, jose.HS256, jose.JSONWebKey{Key: public, KeyID: "key-1"}, claims, nil), "unexpected signature algorithm"},
		"an algorithm not listed":     {sign(t, jose.RS512, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, claims, nil), "unexpected signature algorithm"},
		"unknown key id":              {sign(t, jose.RS256, jose.JSONWebKey{Key: p.rsa, KeyID: "key-2"}, claims, nil), "failed to verify signature"},
		"another's key, known id":     {sign(t, jose.RS256, jose.JSONWebKey{Key: mallory, KeyID: "key-1"}, claims, nil), "failed to verify signature"},
		"another's key, no id":        {sign(t, jose.RS256, mallory, claims, nil), "failed to verify signature"},
		"another's key, sent along":   {sign(t, jose.RS256, jose.JSONWebKey{Key: mallory, KeyID: "key-1"}, claims, &jose.SignerOptions{EmbedJWK: true}), "failed to verify signature"},
		"a header that must be known": {sign(t, jose.RS256, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, claims, (&jose.SignerOptions{}).WithHeader("crit", []string{"exp"}).WithHeader("exp", 1)), "header has crit"},
	}
}

func decoded(t *testing.T, part string) string {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestForgedTokens(t *testing.T) {
	p := start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: p.URL})
	if _, _, err := a.Authenticate(t.Context(), p.token(t, nil)); err != nil {
		t.Fatalf("the good token is refused: %v", err)
	}
	for name, row := range forged(t, p) {
		t.Run(name, func(t *testing.T) {
			got, _, err := a.Authenticate(t.Context(), row.token)
			var refused *Refused
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), row.want) || !reflect.DeepEqual(got, action.Principal{}) {
				t.Errorf("%+v, %v; want %s", got, err, row.want)
			}
			if parts := strings.Split(row.token, "."); len(parts) > 2 && len(parts[2]) > 8 && strings.Contains(err.Error(), parts[2]) {
				t.Errorf("the error repeats the token: %v", err)
			}
		})
	}
}

// Claims that are configured and absent, or not what they should be, are
// refused: an unknown is never taken for nothing.
func TestUnusableClaims(t *testing.T) {
	p := start(t, httptest.NewServer)
	groups := Issuer{URL: p.URL, GroupsClaim: "groups"}
	username := Issuer{URL: p.URL, UsernameClaim: "email"}
	owner := Issuer{URL: p.URL, OnBehalfOfClaim: "owner"}
	cluster := Issuer{URL: p.URL, Kubernetes: true}
	nested := Issuer{URL: p.URL, GroupsClaim: "realm_access.roles"}
	const overage = "claim groups: the caller is in more groups than the issuer writes into a token (group overage); let it write only those that are assigned to the application, or roles"
	for _, row := range []struct {
		name   string
		issuer Issuer
		claims map[string]any
		want   string
	}{
		{"groups are missing", groups, map[string]any{"groups": nil}, "claim groups: is missing"},
		{"groups are a number", groups, map[string]any{"groups": 7}, "claim groups: is neither text nor a list"},
		{"groups are an object", groups, map[string]any{"groups": map[string]any{"a": true}}, "claim groups: is neither text nor a list"},
		{"groups hold a number", groups, map[string]any{"groups": []any{"a", 7}}, "claim groups: holds something that is not text"},
		{"groups hold an empty name", groups, map[string]any{"groups": []string{"a", ""}}, "claim groups: holds an empty text"},
		{"groups are an empty text", groups, map[string]any{"groups": ""}, "claim groups: holds an empty text"},
		{"groups are null in the list", groups, map[string]any{"groups": []any{nil}}, "claim groups: holds something that is not text"},
		{"groups are elsewhere", groups, map[string]any{"groups": nil, "_claim_names": map[string]string{"groups": "src1"}, "_claim_sources": map[string]any{"src1": map[string]string{"endpoint": "https://graph.example/x"}}}, overage},
		{"some groups are elsewhere", groups, map[string]any{"_claim_names": map[string]string{"groups": "src1"}, "_claim_sources": map[string]any{"src1": map[string]string{"endpoint": "https://graph.example/x"}}}, overage},
		{"groups are left out", groups, map[string]any{"groups": nil, "hasgroups": true}, overage},
		{"nested groups are missing", nested, map[string]any{"realm_access": map[string]any{}}, "claim realm_access.roles: is missing"},
		{"nothing is nested", nested, map[string]any{"realm_access": "roles"}, "claim realm_access.roles: is missing"},
		{"nested groups are an object", nested, map[string]any{"realm_access": map[string]any{"roles": map[string]any{"a": 1}}}, "claim realm_access.roles: is neither text nor a list"},
		{"a group of Kubernetes", groups, map[string]any{"groups": []string{"system:masters"}}, `the name of a group is "system:masters"; only an issuer with kubernetes: true has names that begin with system:`},
		{"a user of Kubernetes", Issuer{URL: p.URL}, map[string]any{"sub": "system:admin"}, `the user name is "system:admin"; only an issuer with kubernetes: true has names that begin with system:`},
		{"a group that is not seen", groups, map[string]any{"groups": []string{"adm\u200bins"}}, `the name of a group has a character that cannot be seen: "adm\u200bins"`},
		{"a subject written backwards", Issuer{URL: p.URL}, map[string]any{"sub": "\u202enimda"}, `the subject has a character that cannot be seen: "\u202enimda"`},
		{"an e-mail address that is not confirmed", username, map[string]any{"email": "a@example.com", "email_verified": false}, "the token's email is not verified"},
		{"an e-mail address that is confirmed in words", username, map[string]any{"email": "a@example.com", "email_verified": "true"}, "the token's email is not verified"},
		{"a client that is a number", Issuer{URL: p.URL}, map[string]any{"azp": 7}, "claim azp is not a name"},
		{"bound to a key", Issuer{URL: p.URL}, map[string]any{"cnf": map[string]string{"jkt": "x"}}, "the token is bound to a key (cnf), and whether the caller has it cannot be checked"},
		{"groups hold a list", groups, map[string]any{"groups": []any{[]string{"a"}}}, "claim groups: holds something that is not text"},
		{"no user name", username, nil, "the token has no claim email"},
		{"an empty user name", username, map[string]any{"email": ""}, "the token has no claim email"},
		{"a list of user names", username, map[string]any{"email": []string{"a"}}, "the token has no claim email"},
		{"nobody on whose behalf", owner, nil, "the token has no claim owner"},
		{"a number on whose behalf", owner, map[string]any{"owner": 7}, "the token has no claim owner"},
		{"act is text", Issuer{URL: p.URL}, map[string]any{"act": "devin"}, "the token's act has no sub"},
		{"act is empty", Issuer{URL: p.URL}, map[string]any{"act": map[string]any{}}, "the token's act has no sub"},
		{"act has a number", Issuer{URL: p.URL}, map[string]any{"act": map[string]any{"sub": 7}}, "the token's act has no sub"},
		{"not a service account", cluster, nil, "the subject is not a service account"},
		{"a node", cluster, map[string]any{"sub": "system:node:a"}, "the subject is not a service account"},
		{"a service account without a name", cluster, map[string]any{"sub": "system:serviceaccount:agents"}, "the subject is not a service account"},
		{"a service account without a namespace", cluster, map[string]any{"sub": "system:serviceaccount::devin"}, "the subject is not a service account"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, _, err := authenticator(t, row.issuer).Authenticate(t.Context(), p.token(t, row.claims))
			var refused *Refused
			if !errors.As(err, &refused) || err.Error() != row.want {
				t.Errorf("%v; want %s", err, row.want)
			}
		})
	}
}

// With several issuers, each speaks for itself only, by its own rules.
func TestSeveralIssuers(t *testing.T) {
	one, two := start(t, httptest.NewServer), start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: one.URL, GroupsClaim: "groups"}, Issuer{URL: two.URL})
	for _, p := range []*idp{one, two} {
		got, _, err := a.Authenticate(t.Context(), p.token(t, nil))
		if err != nil || got.Issuer != p.URL || (len(got.Groups) == 1) != (p == one) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	crossed := sign(t, jose.RS256, jose.JSONWebKey{Key: two.rsa, KeyID: "key-1"}, one.claims(nil), nil)
	if got, _, err := a.Authenticate(t.Context(), crossed); err == nil {
		t.Errorf("one issuer signs for another: %+v", got)
	}
}

// What begins with an issuer's prefix is a name of that issuer, whatever another says.
func TestPrefixesOfOthers(t *testing.T) {
	plain, okta, eu := start(t, httptest.NewServer), start(t, httptest.NewServer), start(t, httptest.NewServer)
	issuer := func(p *idp, prefix string) Issuer {
		return Issuer{URL: p.URL, GroupsClaim: "groups", UsernamePrefix: prefix, GroupsPrefix: prefix}
	}
	a := authenticator(t, issuer(plain, ""), issuer(okta, "okta:"), issuer(eu, "okta:eu:"))
	for _, row := range []struct {
		name       string
		of         *idp
		sub, group string
		taken      bool
	}{
		{"names of its own", plain, "devin", "agents", true},
		{"a part of a prefix", plain, "okta", "okta", true},
		{"another's user", plain, "okta:admin", "agents", false},
		{"another's group", plain, "devin", "okta:admins", false},
		{"names with a prefix", okta, "okta:devin", "admins", true},
		{"a user of the longer prefix", okta, "eu:devin", "admins", false},
		{"a group of the longer prefix", okta, "devin", "eu:admins", false},
		{"names with the longer prefix", eu, "devin", "admins", true},
	} {
		_, _, err := a.Authenticate(t.Context(), row.of.token(t, map[string]any{"sub": row.sub, "groups": []string{"x", row.group}}))
		var refused *Refused
		if (err == nil) != row.taken || err != nil && !errors.As(err, &refused) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// An issuer with an audience of its own takes tokens for that and for no other, and
// nobody else's tokens are taken for it.
func TestAudienceOfAnIssuer(t *testing.T) {
	const own = "22222222-3333-4444-5555-666666666666"
	other, p := start(t, httptest.NewServer), start(t, httptest.NewServer)
	a := authenticator(t, Issuer{URL: other.URL, Audience: own}, Issuer{URL: p.URL})
	for _, row := range []struct {
		name  string
		of    *idp
		aud   any
		taken bool
	}{
		{"its own", other, own, true},
		{"its own among others", other, []string{"a", own}, true},
		{"that of all", other, audience, false},
		{"its own, begun", other, own + "0", false},
		{"none", other, "", false},
		{"that of all, of another issuer", p, audience, true},
		{"another issuer's own", p, own, false},
	} {
		if _, _, err := a.Authenticate(t.Context(), row.of.token(t, map[string]any{"aud": row.aud})); (err == nil) != row.taken {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// An issuer that is down says nothing about a token, good or forged; it is not
// asked for every token that comes, and once it is up again it is believed.
func TestIssuerDown(t *testing.T) {
	p := start(t, httptest.NewServer)
	p.down.Store(true)
	a := authenticator(t, Issuer{URL: p.URL})
	for range 3 {
		_, _, err := a.Authenticate(t.Context(), p.token(t, nil))
		var unavailable *Unavailable
		if !errors.As(err, &unavailable) || !unavailable.Unavailable() {
			t.Fatalf("%v; want Unavailable", err)
		}
	}
	if n := p.asks.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times in a moment", n)
	}
	p.down.Store(false)
	a.now = func() time.Time { return time.Now().Add(retryEvery) }
	if _, _, err := a.Authenticate(t.Context(), p.token(t, nil)); err != nil {
		t.Errorf("the issuer is up again: %v", err)
	}
	if _, _, err := a.Authenticate(t.Context(), p.token(t, map[string]any{"aud": "x"})); err == nil {
		t.Error("and every token is believed")
	}
}

// caFile makes the one issuer's certificate trusted, and no other's.
func TestCAFile(t *testing.T) {
	p := start(t, httptest.NewTLSServer)
	dir := t.TempDir()
	ca, empty := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "empty.pem")
	for path, data := range map[string][]byte{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), empty: []byte("x")} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := authenticator(t, Issuer{URL: p.URL, CAFile: ca}).Authenticate(t.Context(), p.token(t, nil)); err != nil {
		t.Error(err)
	}
	var unavailable *Unavailable
	if _, _, err := authenticator(t, Issuer{URL: p.URL}).Authenticate(t.Context(), p.token(t, nil)); !errors.As(err, &unavailable) {
		t.Errorf("an unknown certificate: %v; want Unavailable", err)
	}
	for _, path := range []string{empty, filepath.Join(dir, "absent.pem")} {
		if _, err := New([]Issuer{{URL: p.URL, CAFile: path}}, audience); err == nil || !strings.HasPrefix(err.Error(), "preparing issuer "+p.URL+": ") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Nobody can be configured to accept what is no signature by a key.
func TestAlgorithms(t *testing.T) {
	for _, algorithm := range []string{"none", "HS256", "HS512", "rs256", ""} {
		if _, err := New([]Issuer{{URL: "https://idp", Algorithms: []string{"RS256", algorithm}}}, audience); err == nil {
			t.Errorf("algorithm %q is accepted", algorithm)
		}
	}
	p := start(t, httptest.NewServer)
	token := sign(t, jose.PS512, jose.JSONWebKey{Key: p.rsa, KeyID: "key-1"}, p.claims(nil), nil)
	if _, _, err := authenticator(t, Issuer{URL: p.URL}).Authenticate(t.Context(), token); err == nil {
		t.Error("PS512 is accepted without being listed")
	}
	listed := authenticator(t, Issuer{URL: p.URL, Algorithms: []string{"PS512"}})
	if _, _, err := listed.Authenticate(t.Context(), token); err != nil {
		t.Errorf("PS512 is refused though it is listed: %v", err)
	}
	if _, _, err := listed.Authenticate(t.Context(), p.token(t, nil)); err == nil {
		t.Error("RS256 is accepted though it is not listed")
	}
}
