package identity

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"
)

// unverified is what a token says before anything of it is believed.
type unverified struct{ header, claims map[string]any }

// parse takes a token apart, in the one form that is taken: three parts of unpadded
// base64url, the first two JSON objects that say nothing twice.
func parse(token string) (unverified, error) {
	parts := strings.Split(token, ".")
	switch len(parts) {
	case 3:
	case 5:
		return unverified{}, refuse("not a JWT that is signed: it has the five parts of one that is encrypted")
	default:
		return unverified{}, refuse("not a JWT: it has %d parts", len(parts))
	}
	var u unverified
	for i, part := range []struct {
		name string
		into *map[string]any
	}{{"header", &u.header}, {"payload", &u.claims}, {"signature", nil}} {
		// Strict, or one signature could be written in several ways; Go skips line breaks.
		data, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil || strings.ContainsAny(parts[i], "\r\n") {
			return u, refuse("not a JWT: its %s is not base64url", part.name)
		}
		if part.into == nil {
			continue
		}
		if *part.into, err = object(data); err != nil {
			return u, refuse("not a JWT: its %s %v", part.name, err)
		}
	}
	return u, u.checkHeader()
}

// object reads a JSON object. Libraries disagree about which of two values of one
// name counts, and about bytes that are not UTF-8, so neither is taken.
func object(data []byte) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("is not UTF-8")
	}
	var m map[string]any
	twice, err := kjson.UnmarshalStrict(data, &m)
	switch {
	case err != nil || m == nil:
		return nil, errors.New("is not a JSON object")
	case len(twice) > 0:
		return nil, errors.New("says something twice")
	}
	return m, nil
}

// checkHeader refuses what would change how the token is to be read. jku, x5u, jwk
// and x5c are not looked at: keys come from the issuer alone. (RFC 8725, sections 3.10 to 3.12)
func (u unverified) checkHeader() error {
	for _, name := range []string{"crit", "b64", "cty", "zip", "enc"} {
		if _, ok := u.header[name]; ok {
			return refuse("the token's header has %s, which is not supported", name)
		}
	}
	typ, present := u.header["typ"]
	if name, _ := typ.(string); present && !slices.Contains([]string{"jwt", "at+jwt"}, strings.TrimPrefix(strings.ToLower(name), "application/")) {
		return refuse("the token is of another type, %.50q; JWT or at+jwt is expected", name)
	}
	return nil
}

// exact are claims that decide; encoding/json, in go-oidc, also takes them in another case.
var exact = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "scope", "scp", "_claim_names", "_claim_sources"}

// check looks at the claims that every token has to have, once its signature is
// known to be good, and returns when it expires.
func (i *issuer) check(claims map[string]any, now time.Time) (time.Time, error) {
	for name := range claims {
		if lower := strings.ToLower(name); lower != name && slices.Contains(exact, lower) {
			return time.Time{}, refuse("the token has %.50q beside, or in place of, %s", name, lower)
		}
	}
	if claims["iss"] != i.URL {
		return time.Time{}, refuse("the token's issuer is not trusted")
	}
	audiences, err := list(claims["aud"])
	if err != nil {
		return time.Time{}, refuse("claim aud: %v", err)
	}
	if !slices.Contains(audiences, i.Audience) {
		return time.Time{}, refuse("the token is for %.200q, not for %q", audiences, i.Audience)
	}
	if _, bound := claims["cnf"]; bound {
		return time.Time{}, refuse("the token is bound to a key (cnf), and whether the caller has it cannot be checked")
	}
	times := map[string]time.Time{}
	for _, name := range []string{"exp", "nbf", "iat"} {
		if v, ok := claims[name]; ok {
			if times[name], ok = moment(v); !ok {
				return time.Time{}, refuse("claim %s is not a time", name)
			}
		}
	}
	expiry, ok := times["exp"]
	latest := now.Add(i.ClockSkew)
	switch {
	case !ok:
		return time.Time{}, refuse("the token has no exp")
	case !now.Before(expiry.Add(i.ClockSkew)):
		return time.Time{}, refuse("the token expired at %s", expiry.UTC().Format(time.RFC3339))
	case latest.Before(times["nbf"]):
		return time.Time{}, refuse("the token is not valid before %s", times["nbf"].UTC().Format(time.RFC3339))
	case latest.Before(times["iat"]):
		return time.Time{}, refuse("the token was issued in the future, at %s", times["iat"].UTC().Format(time.RFC3339))
	}
	return expiry.Add(i.ClockSkew), nil
}

// moment reads a NumericDate (RFC 7519, section 2): seconds, from 1970 to the year 9999.
func moment(v any) (time.Time, bool) {
	var seconds float64
	switch v := v.(type) {
	case int64:
		seconds = float64(v)
	case float64:
		seconds = v
	default:
		return time.Time{}, false
	}
	if !(seconds >= 0 && seconds <= 253402300799) {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}
