package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"countersign/e2e/rig"
)

// hello is a message that whoever has a good token may send.
const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"rig","version":"1"}}}`

// withIssuer prepares a stage whose server trusts this issuer beside the cluster's.
func withIssuer(t *testing.T, i *rig.Issuer, more string) *stage {
	t.Helper()
	s := prepareStage(t, "")
	t.Cleanup(func() { i.Close() })
	if err := rig.Replace(s.server.Config, "issuers: [", fmt.Sprintf("issuers: [{url: %q, groupsClaim: groups%s}, ", i.URL, more)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mint(t *testing.T, i *rig.Issuer, claims map[string]any) string {
	t.Helper()
	all := map[string]any{"sub": "devin", "aud": audience, "groups": []string{"agents"}, "jti": rand.Text()}
	for name, value := range claims {
		all[name] = value
	}
	token, err := i.Token(all)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// login is what the server answers to a caller with this token.
func (s *stage) login(token string) reply {
	s.Helper()
	got := s.send(token, "", "2025-06-18", nil, hello)
	if got.err != nil {
		s.Fatal(got.err)
	}
	return got
}

// refusals are the reasons of the refused logins in the log, oldest first.
func (s *stage) refusals() (reasons []string, raw string) {
	s.Helper()
	records, err := s.server.Export(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	for _, r := range records {
		if r.Type != "login.refused" {
			continue
		}
		var record struct {
			Error struct{ Message string } `json:"error"`
		}
		if err := json.Unmarshal([]byte(r.Raw), &record); err != nil {
			s.Fatal(err)
		}
		reasons, raw = append(reasons, record.Error.Message), raw+r.Raw+"\n"
	}
	return reasons, raw
}

// forgery is a token that must not be taken, and what the log says of it.
type forgery struct{ name, token, reason string }

// forgeries are made with everything that an attacker can have, and some with the
// issuer's own key: what an issuer signs is not always for us.
func forgeries(t *testing.T, i *rig.Issuer, ec *ecdsa.PrivateKey, ed ed25519.PrivateKey) []forgery {
	key, kid := i.Key()
	own := rig.RS256(key)
	mallory, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	embedded, err := json.Marshal(jose.JSONWebKey{Key: mallory.Public(), KeyID: kid, Algorithm: "RS256"})
	if err != nil {
		t.Fatal(err)
	}
	published, err := json.Marshal(jose.JSONWebKey{Key: key.Public(), KeyID: kid})
	if err != nil {
		t.Fatal(err)
	}
	raw := base64.RawURLEncoding.EncodeToString
	nothing := func([]byte) []byte { return nil }
	fixed := func(signature []byte) func([]byte) []byte { return func([]byte) []byte { return signature } }
	hs256 := func(secret []byte) func([]byte) []byte {
		return func(input []byte) []byte {
			mac := hmac.New(sha256.New, secret)
			mac.Write(input)
			return mac.Sum(nil)
		}
	}
	es256 := func(asn1 bool) func([]byte) []byte {
		return func(input []byte) []byte {
			digest := sha256.Sum256(input)
			if asn1 {
				signature, _ := ecdsa.SignASN1(rand.Reader, ec, digest[:])
				return signature
			}
			r, s, _ := ecdsa.Sign(rand.Reader, ec, digest[:])
			return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	}
	ps256 := func(input []byte) []byte {
		digest := sha256.Sum256(input)
		signature, _ := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		return signature
	}
	rs512 := func(input []byte) []byte {
		digest := sha512.Sum512(input)
		signature, _ := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA512, digest[:])
		return signature
	}

	claims := func(changes map[string]any) string {
		all := map[string]any{"sub": "devin", "aud": audience, "groups": []string{"agents"}}
		for name, value := range changes {
			all[name] = value
		}
		payload, err := json.Marshal(i.Claims(all))
		if err != nil {
			t.Fatal(err)
		}
		return string(payload)
	}
	good := claims(nil)
	head := func(alg, more string) string { return fmt.Sprintf(`{"alg":%q,"kid":%q%s}`, alg, kid, more) }
	rs := head("RS256", "")
	// signed are claims under the issuer's own good signature.
	signed := func(payload string) string { return rig.JWT(rs, payload, own) }
	claim := func(name string, value any) string { return signed(claims(map[string]any{name: value})) }
	spliced := func(more string) string { return signed(strings.TrimSuffix(good, "}") + "," + more + "}") }
	header := func(more string) string { return rig.JWT(head("RS256", more), good, own) }
	taken := signed(good)
	part := strings.Split(taken, ".")
	now := time.Now()
	const algorithm, unsigned, noKey, notJWT = "unexpected signature algorithm", "no key of the issuer made it", "the issuer has no key", "not a JWT: "

	return []forgery{
		// No signature, or one by something that is no secret.
		{"alg none", rig.JWT(head("none", ""), good, nothing), algorithm},
		{"alg None", rig.JWT(head("None", ""), good, nothing), algorithm},
		{"alg NONE", rig.JWT(head("NONE", ""), good, nothing), algorithm},
		{"alg none with a signature", rig.JWT(head("none", ""), good, own), algorithm},
		{"no alg", rig.JWT(fmt.Sprintf(`{"kid":%q}`, kid), good, own), algorithm},
		{"alg empty", rig.JWT(head("", ""), good, own), algorithm},
		{"alg twice", header(`,"alg":"none"`), notJWT + "its header says something twice"},
		{"alg is a list", rig.JWT(`{"alg":["RS256"]}`, good, own), "malformed jwt"},
		{"HS256 with the public key", rig.JWT(head("HS256", ""), good, hs256(publicPEM)), algorithm},
		{"HS256 with the public key's DER", rig.JWT(head("HS256", ""), good, hs256(public)), algorithm},
		{"HS256 with the published JWK", rig.JWT(head("HS256", ""), good, hs256(published)), algorithm},
		{"RS256 that is an HMAC", rig.JWT(rs, good, hs256(publicPEM)), unsigned},
		{"RS512, which is not listed", rig.JWT(head("RS512", ""), good, rs512), algorithm},
		{"PS256, which is not listed", rig.JWT(head("PS256", ""), good, ps256), algorithm},
		{"EdDSA, which is not listed", rig.JWT(`{"alg":"EdDSA","kid":"ed"}`, good, func(input []byte) []byte { return ed25519.Sign(ed, input) }), algorithm},
		{"ES256 of nothing", rig.JWT(`{"alg":"ES256","kid":"ec"}`, good, fixed(make([]byte, 64))), unsigned},
		{"ES256 of the curve's order", rig.JWT(`{"alg":"ES256","kid":"ec"}`, good, fixed(append(elliptic.P256().Params().N.Bytes(), elliptic.P256().Params().N.Bytes()...))), unsigned},
		{"ES256 in DER", rig.JWT(`{"alg":"ES256","kid":"ec"}`, good, es256(true)), unsigned},
		{"ES256 by an RSA key's name", rig.JWT(head("ES256", ""), good, es256(false)), noKey},
		{"RS256 by an EC key's name", rig.JWT(`{"alg":"RS256","kid":"ec"}`, good, own), unsigned},
		{"no signature", rig.JWT(rs, good, nothing), unsigned},
		{"a signature of zeros", rig.JWT(rs, good, fixed(make([]byte, 256))), unsigned},
		{"another payload's signature", part[0] + "." + raw([]byte(claims(map[string]any{"sub": "admin"}))) + "." + part[2], unsigned},
		{"another header's signature", raw([]byte(head("RS256", `,"typ":"JWT"`))) + "." + part[1] + "." + part[2], unsigned},

		// Another's key.
		{"another's key", rig.JWT(rs, good, rig.RS256(mallory)), unsigned},
		{"another's key without a name", rig.JWT(`{"alg":"RS256"}`, good, rig.RS256(mallory)), unsigned},
		{"an unknown key", rig.JWT(`{"alg":"RS256","kid":"key-7"}`, good, rig.RS256(mallory)), noKey},
		{"a key that is a path", rig.JWT(`{"alg":"RS256","kid":"../../../../dev/null"}`, good, hs256(nil)), noKey},
		{"a key that is an address", rig.JWT(`{"alg":"RS256","kid":"http://127.0.0.1:1/key"}`, good, rig.RS256(mallory)), noKey},
		{"a key that is SQL", rig.JWT(`{"alg":"RS256","kid":"x' UNION SELECT 'k' -- "}`, good, rig.RS256(mallory)), noKey},
		{"a key with lines of a log", rig.JWT(`{"alg":"RS256","kid":"x\n{\"type\":\"login.accepted\"}"}`, good, rig.RS256(mallory)), noKey},
		{"a key that is a number", rig.JWT(`{"alg":"RS256","kid":7}`, good, own), "malformed jwt"},
		{"a key in the token", rig.JWT(head("RS256", `,"jwk":`+string(embedded)), good, rig.RS256(mallory)), unsigned},
		{"a key in the token, named nowhere else", rig.JWT(`{"alg":"RS256","jwk":`+string(embedded)+`}`, good, rig.RS256(mallory)), unsigned},
		{"the address of a set of keys", rig.JWT(head("RS256", `,"jku":"http://127.0.0.1:1/keys"`), good, rig.RS256(mallory)), unsigned},
		{"the address of a certificate", rig.JWT(head("RS256", `,"x5u":"http://127.0.0.1:1/cert"`), good, rig.RS256(mallory)), unsigned},
		{"a certificate in the token", rig.JWT(head("RS256", `,"x5c":["AAAA"]`), good, rig.RS256(mallory)), "malformed jwt"},

		// Headers that change how a token is to be read.
		{"crit", header(`,"crit":["exp"],"exp":1`), "header has crit"},
		{"crit that is empty", header(`,"crit":[]`), "header has crit"},
		{"b64 is false", header(`,"crit":["b64"],"b64":false`), "header has crit"},
		{"b64 is false, and not critical", header(`,"b64":false`), "header has b64"},
		{"packed", header(`,"zip":"DEF"`), "header has zip"},
		{"a logout token", header(`,"typ":"logout+jwt"`), "the token is of another type"},
		{"a security event", header(`,"typ":"secevent+jwt"`), "the token is of another type"},
		{"a proof of possession", header(`,"typ":"dpop+jwt"`), "the token is of another type"},
		{"typ is a number", header(`,"typ":7`), "the token is of another type"},
		{"a token in a token", rig.JWT(head("RS256", `,"cty":"JWT"`), taken, own), notJWT + "its payload is not a JSON object"},
		{"a token in a token, as JSON", header(`,"cty":"JWT"`), "header has cty"},
		{"encrypted", strings.Join([]string{raw([]byte(`{"alg":"RSA-OAEP","enc":"A256GCM"}`)), raw([]byte("key")), raw([]byte("iv")), raw([]byte("text")), raw([]byte("tag"))}, "."), "encrypted"},
		{"encrypted, in three parts", rig.JWT(`{"alg":"dir","enc":"A256GCM"}`, good, own), "header has enc"},

		// For somebody else, or from somebody else.
		{"wrong audience", claim("aud", "https://elsewhere.example/mcp"), "expected audience"},
		{"audiences without us", claim("aud", []string{"a", "b"}), "expected audience"},
		{"audience that begins so", claim("aud", audience+"/x"), "expected audience"},
		{"audience with a slash", claim("aud", audience+"/"), "expected audience"},
		{"audience in another case", claim("aud", strings.ToUpper(audience)), "expected audience"},
		{"audience of another issuer's setting", claim("aud", "api://agents"), "expected audience"},
		{"audience in wide letters", claim("aud", strings.Replace(audience, "m", "\uff4d", 1)), "expected audience"},
		{"no audience", claim("aud", nil), "expected audience"},
		{"an empty list of audiences", claim("aud", []string{}), "expected audience"},
		{"audience is an object", claim("aud", map[string]any{audience: true}), "failed to unmarshal claims"},
		{"audience in another spelling", signed(strings.Replace(good, `"aud"`, `"AUD"`, 1)), `the token has "AUD" beside, or in place of, aud`},
		{"wrong issuer", claim("iss", "https://accounts.example.com"), "issuer is not trusted"},
		{"issuer with a slash", claim("iss", i.URL+"/"), "issuer is not trusted"},
		{"issuer in another case", claim("iss", strings.ToUpper(i.URL)), "issuer is not trusted"},
		{"issuer by another name", claim("iss", strings.Replace(i.URL, "127.0.0.1", "localhost", 1)), "issuer is not trusted"},
		{"no issuer", claim("iss", nil), "issuer is not trusted"},
		{"issuer is a list", claim("iss", []string{i.URL}), "issuer is not trusted"},
		{"the other issuer's name, this one's key", claim("iss", world.cluster.Issuer), noKey},

		// Not now.
		{"expired", claim("exp", now.Add(-10*time.Minute).Unix()), "the token expired at"},
		{"expired in 1970", claim("exp", 0), "the token expired at"},
		{"never expires", claim("exp", nil), "the token has no exp"},
		{"exp is null", signed(strings.Replace(claims(map[string]any{"exp": 1}), `"exp":1`, `"exp":null`, 1)), "failed to unmarshal claims"},
		{"exp is text", claim("exp", fmt.Sprint(now.Add(time.Hour).Unix())), "claim exp is not a time"},
		{"exp is negative", claim("exp", -1), "claim exp is not a time"},
		{"exp is huge", spliced(`"nbf":1e300`), "claim nbf is not a time"},
		{"exp is in milliseconds", claim("exp", now.Add(time.Hour).UnixMilli()), "claim exp is not a time"},
		{"exp is past, with a fraction", claim("exp", float64(now.Add(-10*time.Minute).Unix())+0.5), "the token expired at"},
		{"exp twice", spliced(fmt.Sprintf(`"exp":%d`, now.Add(time.Hour).Unix())), notJWT + "its payload says something twice"},
		{"exp in another spelling", signed(strings.Replace(claims(map[string]any{"exp": now.Add(time.Hour).Unix()}), `"exp"`, `"Exp"`, 1)), `the token has "Exp" beside, or in place of, exp`},
		{"not yet valid", claim("nbf", now.Add(10*time.Minute).Unix()), "the token is not valid before"},
		{"issued tomorrow", claim("iat", now.Add(24*time.Hour).Unix()), "the token was issued in the future"},
		{"iat is text", claim("iat", "now"), "failed to unmarshal claims"},

		// Of nobody.
		{"no subject", claim("sub", nil), "the token has no sub"},
		{"an empty subject", claim("sub", ""), "the token has no sub"},
		{"a subject that is a number", claim("sub", 7), "failed to unmarshal claims"},
		{"a subject twice", spliced(`"sub":"admin"`), notJWT + "its payload says something twice"},
		{"a subject twice, spelt differently", spliced(`"\u0073ub":"admin"`), notJWT + "its payload says something twice"},
		{"a subject written backwards", claim("sub", "\u202enimda"), "a character that cannot be seen"},
		{"a subject with nothing in it", claim("sub", "adm\u200bin"), "a character that cannot be seen"},
		{"a subject with a line", claim("sub", "a\nb"), "a character that cannot be seen"},
		{"half a character", signed(strings.Replace(good, `"devin"`, `"\ud800"`, 1)), "a character that cannot be seen"},
		{"a subject that is not UTF-8", signed(strings.Replace(good, "devin", "dev\xff", 1)), notJWT + "its payload is not UTF-8"},
		{"an endless subject", claim("sub", strings.Repeat("x", 2000)), "the subject has 2000 bytes"},
		{"Kubernetes' own", claim("sub", "system:admin"), "names that begin with system:"},
		{"no groups", claim("groups", nil), "claim groups: is missing"},
		{"groups are an object", claim("groups", map[string]any{"a": 1}), "claim groups: is neither text nor a list"},
		{"groups hold a number", claim("groups", []any{"a", 7}), "claim groups: holds something that is not text"},
		{"too many groups", signed(claims(map[string]any{"groups": nil, "_claim_names": map[string]string{"groups": "s"}, "_claim_sources": map[string]any{"s": map[string]string{"endpoint": "https://graph.example"}}})), "group overage"},
		{"a client that is a number", claim("azp", 7), "claim azp is not a name"},
		{"for whom nobody is", claim("act", map[string]any{}), "the token's act has no sub"},
		{"bound to a key", claim("cnf", map[string]string{"jkt": "x"}), "the token is bound to a key"},

		// Not a token.
		{"a word", "hunter2", notJWT + "it has 1 parts"},
		{"dots", "..", notJWT + "its header is not a JSON object"},
		{"cut off", taken[:len(taken)-22], unsigned},
		{"cut off at the signature", part[0] + "." + part[1], notJWT + "it has 2 parts"},
		{"one dot more", taken + ".", notJWT + "it has 4 parts"},
		{"one dot before", "." + taken, notJWT + "it has 4 parts"},
		{"padded", part[0] + "." + part[1] + "." + part[2] + "==", notJWT + "its signature is not base64url"},
		{"in the other base64", part[0] + "." + part[1] + ".+/" + part[2][2:], notJWT + "its signature is not base64url"},
		{"a signature spelt differently", part[0] + "." + part[1] + "." + respelt(part[2]), notJWT + "its signature is not base64url"},
		{"a payload that is no base64", part[0] + ".%%%." + part[2], notJWT + "its payload is not base64url"},
		{"a header that is not JSON", rig.JWT("hello", good, own), notJWT + "its header is not a JSON object"},
		{"a header that is null", rig.JWT("null", good, own), notJWT + "its header is not a JSON object"},
		{"a payload that is a list", signed("[]"), notJWT + "its payload is not a JSON object"},
		{"a payload and more", signed(good + "{}"), notJWT + "its payload is not a JSON object"},
		{"the JSON form of a token", `{"payload":"` + part[1] + `","protected":"` + part[0] + `","signature":"` + part[2] + `"}`, notJWT + "it has 1 parts"},
		{"the JSON form, with dots", `{"x":".` + part[1] + `.","payload":"` + part[1] + `","protected":"` + part[0] + `","signature":"` + part[2] + `"}`, notJWT + "its header is not base64url"},
		{"a huge header", header(`,"x":"` + strings.Repeat("x", 15<<10) + `"`), "at most 16384 are read"},
		{"a huge payload", claim("x", strings.Repeat("x", 30<<10)), "at most 16384 are read"},
		{"100 KB", claim("x", strings.Repeat("x", 75<<10)), "at most 16384 are read"},
		{"nesting without end", spliced(`"x":` + strings.Repeat("[", 11000)), notJWT + "its payload is not a JSON object"},
	}
}

// respelt is the same bits in another last letter, which lenient decoders take.
func respelt(signature string) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(signature) - 1
	return signature[:last] + string(letters[strings.IndexByte(letters, signature[last])+1])
}

// Negative cases, line 1. Whatever is wrong with a token, its sender is told the
// same, and the log has the reason but not the token.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	i, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.Publish(jose.JSONWebKey{Key: ec.Public(), KeyID: "ec"})
	i.Publish(jose.JSONWebKey{Key: public, KeyID: "ed"})
	elsewhere, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { elsewhere.Close() })
	s := withIssuer(t, i, fmt.Sprintf(`}, {url: %q, audience: "api://agents"`, elsewhere.URL))
	s.start()
	if got := s.login(mint(t, elsewhere, map[string]any{"aud": "api://agents"})); got.status != http.StatusOK {
		t.Fatalf("a token for its issuer's own audience: %+v", got)
	}

	// What is odd, and nothing more, is taken: else the table would prove nothing.
	key, kid := i.Key()
	payload, err := json.Marshal(i.Claims(map[string]any{"sub": "devin", "aud": audience, "groups": "agents"}))
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"plain":                         mint(t, i, nil),
		"among several audiences":       mint(t, i, map[string]any{"aud": []string{"other", audience}}),
		"another's client (azp)":        mint(t, i, map[string]any{"aud": []string{"other", audience}, "azp": "other"}),
		"exp with a fraction":           mint(t, i, map[string]any{"exp": float64(time.Now().Add(time.Hour).Unix()) + 0.5}),
		"an access token":               rig.JWT(fmt.Sprintf(`{"alg":"RS256","kid":%q,"typ":"application/at+JWT"}`, kid), string(payload), rig.RS256(key)),
		"an address that is not called": rig.JWT(fmt.Sprintf(`{"alg":"RS256","kid":%q,"typ":"JWT","jku":"http://127.0.0.1:1/keys"}`, kid), string(payload), rig.RS256(key)),
		"without the key's name":        rig.JWT(`{"alg":"RS256"}`, string(payload), rig.RS256(key)),
		"ES256": rig.JWT(`{"alg":"ES256","kid":"ec"}`, string(payload), func(input []byte) []byte {
			digest := sha256.Sum256(input)
			r, s, _ := ecdsa.Sign(rand.Reader, ec, digest[:])
			return append(r.FillBytes(make([]byte, 32)), new(big.Int).Set(s).FillBytes(make([]byte, 32))...)
		}),
	} {
		if got := s.login(token); got.status != http.StatusOK {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if reasons, _ := s.refusals(); len(reasons) != 0 {
		t.Fatalf("refused before any forgery: %v", reasons)
	}
	asked := i.Requests()

	table := forgeries(t, i, ec, ed)
	var first reply
	for n, f := range table {
		if n >= 40 { // 50 at once become records and are answered, then 5 a second
			time.Sleep(210 * time.Millisecond)
		}
		got := s.login(f.token)
		if n == 0 {
			first = got
			if got.body != "a valid bearer token is needed\n" || !strings.Contains(got.challenge, "resource_metadata=") || !strings.Contains(got.challenge, `error="invalid_token"`) {
				t.Errorf("the answer is %+v", got)
			}
		}
		if got != first || got.status != http.StatusUnauthorized {
			t.Errorf("%s: %+v; want %+v", f.name, got, first)
		}
	}
	reasons, raw := s.refusals()
	if len(reasons) != len(table) {
		t.Fatalf("%d forgeries, %d records:\n%s", len(table), len(reasons), strings.Join(reasons, "\n"))
	}
	for n, f := range table {
		if !strings.Contains(reasons[n], f.reason) || len(reasons[n]) > 400 || strings.Contains(reasons[n], "since the last record") {
			t.Errorf("%s: the log says %q; want %q", f.name, reasons[n], f.reason)
		}
		for _, part := range strings.Split(f.token, ".") {
			if len(part) > 40 && (strings.Contains(raw, part[:40]) || strings.Contains(raw, part[len(part)-40:])) {
				t.Errorf("%s: a part of the token is in the log", f.name)
			}
		}
	}
	t.Logf("%d forged and broken tokens", len(table))
	// All of this was some looks at the issuer, of two requests each, 10 s apart.
	if n := i.Requests() - asked; n > 10 {
		t.Errorf("the issuer was asked %d times", n)
	}

	// A token that is larger than the head of a request may be is not even read.
	huge := s.send(mint(t, i, map[string]any{"x": strings.Repeat("x", 200<<10)}), "", "2025-06-18", nil, hello)
	if huge.err == nil && huge.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a token of 270 KB: %+v", huge)
	}
	if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
		t.Errorf("and after it: %+v", got)
	}
}

// New keys are taken up while calls run, and none of those with a good token fails.
func TestKeyRotationWhileCallsRun(t *testing.T) {
	t.Parallel()
	i, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	s := withIssuer(t, i, "")
	s.start()
	if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
		t.Fatalf("%+v", got)
	}
	old := make([]string, 40)
	for n := range old {
		old[n] = mint(t, i, nil)
	}
	first, _ := i.Key()
	ended := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // the old key is published beside the new one
		for n := 0; ; n++ {
			select {
			case <-ended:
				return
			case <-time.After(100 * time.Millisecond):
				if got := s.login(old[n%len(old)]); got.status != http.StatusOK {
					t.Errorf("a token of the old key: %+v", got)
					return
				}
			}
		}
	})
	if err := i.Rotate("second"); err != nil {
		t.Fatal(err)
	}
	i.Publish(jose.JSONWebKey{Key: first.Public(), KeyID: "rig"})
	s.eventually("the new key is taken", func() bool {
		time.Sleep(time.Second) // a refused token a second
		return s.login(mint(t, i, nil)).status == http.StatusOK
	})
	for range 20 {
		if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
			t.Fatalf("a token of the new key: %+v", got)
		}
	}
	close(ended)
	all.Wait()
	if n := i.Requests(); n > 8 {
		t.Errorf("the issuer was asked %d times", n)
	}
}

// While an issuer is down, its known keys go on; tokens of others are put off, not
// refused. A storm of invented keys costs it a few requests, up or down.
func TestIssuerOutageAndStorm(t *testing.T) {
	t.Parallel()
	i, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	s := withIssuer(t, i, "")
	s.start()
	if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
		t.Fatalf("%+v", got)
	}
	key, _ := i.Key()
	payload, err := json.Marshal(i.Claims(map[string]any{"sub": "devin", "aud": audience, "groups": "agents"}))
	if err != nil {
		t.Fatal(err)
	}
	storm := func(calls int) map[int]int {
		var mu sync.Mutex
		statuses := map[int]int{}
		var all sync.WaitGroup
		for w := range 10 {
			all.Go(func() {
				for n := range calls / 10 {
					token := rig.JWT(fmt.Sprintf(`{"alg":"RS256","kid":"invented-%d-%d"}`, w, n), string(payload), rig.RS256(key))
					got := s.login(token)
					mu.Lock()
					statuses[got.status]++
					mu.Unlock()
				}
			})
		}
		all.Wait()
		return statuses
	}
	before, begun := i.Requests(), time.Now()
	statuses := storm(200)
	looks := int(time.Since(begun)/(10*time.Second)) + 1
	if n := i.Requests() - before; n > 2*looks {
		t.Errorf("200 invented keys in %s: the issuer was asked %d times", time.Since(begun), n)
	}
	if statuses[http.StatusOK] != 0 || statuses[http.StatusUnauthorized] == 0 || statuses[http.StatusServiceUnavailable] != 0 {
		t.Errorf("answers: %v", statuses)
	}
	if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
		t.Errorf("a good token after the storm: %+v", got)
	}

	i.Down(true)
	for range 20 {
		if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
			t.Fatalf("a known key while the issuer is down: %+v", got)
		}
	}
	s.eventually("the issuer is known to be down", func() bool {
		time.Sleep(time.Second)
		return s.login(rig.JWT(`{"alg":"RS256","kid":"invented"}`, string(payload), rig.RS256(key))).status == http.StatusServiceUnavailable
	})
	before, begun = i.Requests(), time.Now()
	statuses = storm(200)
	looks = int(time.Since(begun)/(5*time.Second)) + 1
	if n := i.Requests() - before; n > 2*looks {
		t.Errorf("200 invented keys in %s, with the issuer down: it was asked %d times", time.Since(begun), n)
	}
	if statuses[http.StatusOK] != 0 || statuses[http.StatusServiceUnavailable] == 0 {
		t.Errorf("answers: %v", statuses)
	}
	for range 20 {
		if got := s.login(mint(t, i, nil)); got.status != http.StatusOK {
			t.Fatalf("a known key in the storm while the issuer is down: %+v", got)
		}
	}
	if got := s.login(world.token); got.status != http.StatusOK {
		t.Errorf("another issuer's token: %+v", got)
	}
}

// The server starts without its issuer, and takes its tokens once it is there: also
// after it answered with documents that are too large.
func TestIssuerDownAtStart(t *testing.T) {
	t.Parallel()
	i, err := rig.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	s := withIssuer(t, i, "")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.server.Log = log
	s.start()
	if got := s.login(mint(t, i, nil)); got.status != http.StatusServiceUnavailable || got.challenge != "" {
		t.Errorf("%+v", got)
	}
	if got := s.login(world.token); got.status != http.StatusOK {
		t.Errorf("another issuer's token: %+v", got)
	}
	// Whoever asks why is told, with the issuer's address.
	if text, err := s.server.Run(s.ctx, "status"); err == nil || !strings.Contains(err.Error(), "issuer "+i.URL) || !strings.Contains(text, i.URL+": nobody of it can log in: ") {
		t.Errorf("%s %v", text, err)
	}
	i.Pad(10 << 20)
	if err := i.Start(); err != nil {
		t.Fatal(err)
	}
	s.eventually("the large document is refused", func() bool {
		time.Sleep(time.Second)
		if got := s.login(mint(t, i, nil)); got.status != http.StatusServiceUnavailable {
			t.Fatalf("%+v", got)
		}
		reasons, _ := s.refusals()
		return strings.Contains(strings.Join(reasons, "\n"), "the document is larger than 1048576 bytes")
	})
	i.Pad(0)
	s.eventually("the issuer is taken", func() bool {
		time.Sleep(time.Second)
		return s.login(mint(t, i, nil)).status == http.StatusOK
	})
	s.eventually("the log tells of it, once", func() bool {
		text, err := os.ReadFile(log.Name())
		return err == nil && bytes.Count(text, []byte("issuer cannot be asked for its keys")) == 1 && bytes.Contains(text, []byte("issuer answers again"))
	})
}

// clockSkew and the prefixes reach the tokens: they are keys of the configuration.
func TestIssuerSettings(t *testing.T) {
	i, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	s := withIssuer(t, i, `, clockSkew: 5m, usernamePrefix: "okta:", groupsPrefix: "okta:"`)
	s.start()
	if got := s.login(mint(t, i, map[string]any{"exp": time.Now().Add(-4 * time.Minute).Unix()})); got.status != http.StatusOK {
		t.Errorf("expired 4 minutes ago: %+v", got)
	}
	if got := s.login(mint(t, i, map[string]any{"exp": time.Now().Add(-6 * time.Minute).Unix()})); got.status != http.StatusUnauthorized {
		t.Errorf("expired 6 minutes ago: %+v", got)
	}
	agent := &rig.Agent{URL: s.server.URL, Token: mint(t, i, nil)}
	if err := agent.Connect(s.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Call(s.ctx, "list_namespaces", `{}`); err != nil {
		t.Fatal(err)
	}
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if strings.Contains(r.Raw, `"username":"okta:devin"`) && strings.Contains(r.Raw, `"okta:agents"`) && strings.Contains(r.Raw, `"subject":"devin"`) {
			return
		}
	}
	t.Error("no record has the names with their prefixes")
}
