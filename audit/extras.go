package audit

import (
	"encoding/base64"
	"strings"
)

// extras are the few rules that gitleaks lacks. The first group is the secret;
// each begins with one of its keywords.
var extras = []struct {
	id, regex string
	keywords  []string
	wrapped   bool
	check     func(secret string) bool
}{
	// gitleaks wants longer parts, and an end; logs cut and wrap tokens. The last
	// part can be farther away than a rule looks at first, see reach.
	{id: "jwt-parts", regex: `(eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)`, keywords: []string{"eyj"}, wrapped: true},
	// gitleaks knows passwords in URLs of one vendor only. In nginx:1.25@sha256:... there is none.
	{id: "url-password", regex: `://[^\s/?#"'<>:@\\]{0,128}:([^\s/"'<>\\]{1,256})@(?:[^s]|s(?:[^h]|$)|sh(?:[^a]|$)|$)`, keywords: []string{"://"}, check: urlPassword},
	// gitleaks knows Authorization headers of curl commands only.
	{id: "authorization-header", regex: `(?i)authorization['"\\]{0,8}[ \t]*(?:=>|[:=])[ \t]*['"\\\[]{0,8}(?:basic|bearer|token|apikey|digest|negotiate)[ \t]+([\w=~@.+/-]{8,})`, keywords: []string{"authorization"}, check: mixed},
	// As above, where the header's name is not by it.
	{id: "bearer", regex: `(?i)bearer[ \t]+([\w=~@.+/-]{16,})`, keywords: []string{"bearer"}, check: random},
	// As above; what follows "basic" in a sentence is no base64 of a pair.
	{id: "basic", regex: `(?i)basic[ \t]+([a-z0-9+/]{8,}={0,2})`, keywords: []string{"basic"}, check: pair},
	// gitleaks' generic rule wants more entropy than a short user and password have.
	{id: "docker-auth", regex: `(?i)auth[\\"']{0,8}[ \t]*[:=][ \t]*[\\"']{0,8}([a-z0-9+/]{6,}={0,2})`, keywords: []string{"auth"}, check: pair},
	// gitleaks has no rule for .netrc, where no operator stands before the password.
	{id: "netrc", regex: `(?i)login[ \t]+[^\s]{1,128}(?:\s|\\n){1,8}password[ \t]+([^\s\\"]{1,128})`, keywords: []string{"login"}},
	// gitleaks does not know shared access signatures of Azure.
	{id: "azure-sas", regex: `sig=([A-Za-z0-9%+/]{40,}(?:=|%3D)?)`, keywords: []string{"sig="}, check: mixed},
}

// urlPassword is no reference.
func urlPassword(secret string) bool { return !placeholder.MatchString(secret) }

// mixed is not an English word.
func mixed(secret string) bool {
	return !placeholder.MatchString(secret) && (strings.ToLower(secret) != secret || hasDigit(secret))
}

// pair is base64 of user:password.
func pair(secret string) bool {
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(secret, "="))
	return err == nil && len(text) > 3 && strings.IndexByte(string(text[:len(text)-1]), ':') > 0 && printable(text)
}
