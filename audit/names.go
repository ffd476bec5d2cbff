package audit

import (
	"regexp"
	"slices"
	"strings"
)

// strength is how surely a name is that of a credential.
type strength int

const (
	noName     strength = iota
	weak                // a key or access to something: the value must look random
	credential          // a token or a secret, which can be the name of an object
	password            // nothing but a credential
)

// nameKeywords are the words that every name of a credential has: those of
// gitleaks' generic rule, and how passwords are called beside.
var nameKeywords = []string{"pass", "pwd", "secret", "token", "cred", "key", "auth", "access"}

var (
	passwordWords   = []string{"password", "passwd", "passphrase", "pwd"}
	credentialWords = []string{"secret", "token", "credential", "credentials", "creds", "pass", "apikey", "secretkey", "accesskey", "privatekey", "authkey"}
	weakWords       = []string{"key", "auth", "access", "api", "authorization"}
	// keyOf are the words before key that make it a credential.
	keyOf = []string{"api", "secret", "private", "access", "auth", "encryption", "signing", "account", "master", "license", "app", "application"}
	// derived are the words of what is made from a credential, or is a cursor.
	derived = []string{"checksum", "digest", "hash", "sha", "sha256", "md5", "pub", "public", "page", "continue", "continuation", "next"}
)

// nameStrength looks at the words that a name ends with: apiKey, DB_PASSWORD
// and client-secret are names of credentials, secretName and PASSWORD_FILE are
// not.
func nameStrength(name string) strength {
	words := nameWords(name)
	for len(words) > 1 && strings.Trim(words[len(words)-1], "0123456789") == "" {
		words = words[:len(words)-1] // PASSWORD_2
	}
	if len(words) == 0 || slices.ContainsFunc(words, func(w string) bool { return slices.Contains(derived, w) }) {
		return noName
	}
	last := strings.TrimRight(words[len(words)-1], "0123456789")
	ends := func(w string) bool { return strings.HasSuffix(last, w) } // dbpassword
	switch {
	case slices.ContainsFunc(passwordWords, ends):
		return password
	case slices.ContainsFunc(credentialWords[:2], ends), slices.Contains(credentialWords, last), strings.HasSuffix(last, "apikey"):
		return credential
	case last == "key" && len(words) > 1 && slices.Contains(keyOf, words[len(words)-2]):
		return credential
	case slices.Contains(weakWords, last):
		return weak
	}
	return noName
}

// nameWords splits at capitals and at what is no letter: DBPassword, db.password.
func nameWords(name string) []string {
	var words []string
	start := 0
	end := func(i int) {
		if i > start {
			words = append(words, strings.ToLower(name[start:i]))
		}
		start = i
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case !isWord(c) || c == '_':
			end(i)
			start = i + 1
		case i > start && isUpper(c) && (!isUpper(name[i-1]) || i+1 < len(name) && isLower(name[i+1])):
			end(i)
		}
	}
	end(len(name))
	return words
}

var (
	placeholder = regexp.MustCompile(`^(?:\*+|[xX]+|\.+|-+|\$?\$\(.*\)|\$?\$?\{.*\}|\$[A-Z_][A-Z0-9_]*|<.*>|\[[A-Za-z ]*\]|%[A-Z_]+%|%[+#]?[a-z]|@[A-Z_]+@)$`)
	number      = regexp.MustCompile(`^[+-]?(?:\d[\d.,_]*(?:[numµ]?s|[mhdwy]|[kKMGTPE]i?[Bb]?|[Bb]|%)?)+$`)
	address     = regexp.MustCompile(`^(?:[a-z][a-z0-9+.-]*://|arn:|ref\+|vault:)\S*$`)
	path        = regexp.MustCompile(`^(?:file:|~|\.{1,2})?(?:/[\w.@:-]{1,24})+/?$|^[\w.-]{1,24}(?:/[\w.-]{1,24}){2,}$`)
	objectName  = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9./-]*[a-z0-9])?$`)
	timestamp   = regexp.MustCompile(`^\d{4}-\d\d-\d\d`)
	digest      = regexp.MustCompile(`^(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9A-F]{32}|[0-9A-F]{40}|[0-9A-F]{64})$`)
	uuid        = regexp.MustCompile(`^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
)

// noValues are words that stand where a credential could, and are none.
var noValues = []string{"true", "false", "yes", "no", "on", "off", "null", "nil", "none", "undefined", "enabled", "disabled",
	"required", "optional", "string", "redacted", "masked", "hidden", "missing", "unset", "invalid", "expired", "empty"}

// longestPlain is that of what is told to be no credential by its form; it is
// the longest name of an object as well.
const longestPlain = 253

// plainValue is no credential whatever its name is.
func plainValue(v string) bool {
	v = strings.TrimSpace(v)
	if len(v) > longestPlain {
		return address.MatchString(v)
	}
	return v == "" || slices.Contains(noValues, strings.ToLower(v)) || placeholder.MatchString(v) || number.MatchString(v) ||
		address.MatchString(v) || path.MatchString(v)
}

// isObjectName reports whether a value reads like the name of a Kubernetes
// object or another thing: words, numbers and short random suffixes.
func isObjectName(v string) bool {
	if len(v) > longestPlain || !strings.ContainsAny(v, "-./") || !objectName.MatchString(v) {
		return false
	}
	for _, part := range strings.FieldsFunc(v, func(r rune) bool { return r == '-' || r == '.' || r == '/' }) {
		if len(part) > 10 && hasDigit(part) && strings.Trim(part, "0123456789") != "" {
			return false
		}
	}
	return true
}

// random reports whether a value reads like a generated credential, for names
// that are not proof enough.
func random(v string) bool {
	return len(v) >= 8 && hasDigit(v) && strings.ContainsFunc(v, func(r rune) bool { return r < 128 && (isUpper(byte(r)) || isLower(byte(r))) }) &&
		!strings.ContainsAny(v, " \t\n") && !isObjectName(v) && !timestamp.MatchString(v)
}

// guess is random for where nothing but chance says that it is a credential.
func guess(v string) bool {
	return len(v) >= 10 && random(v) && entropy(v) > 3.2 && !digest.MatchString(v) && !uuid.MatchString(v) && !strings.ContainsAny(v, ":@,")
}

// namedSecret reports whether a value is a credential going by the name that it
// has in an object.
func namedSecret(name, value string) bool {
	switch nameStrength(name) {
	case password:
		return !plainValue(value)
	case credential:
		return !plainValue(value) && !isObjectName(value)
	case weak:
		return !plainValue(value) && guess(value)
	}
	return false
}

// assignment looks at the name around a position and at the value that follows
// it, and returns where the name ends and the secret, if it is one.
func assignment(s string, at int) (nameEnd int, secret span, ok bool) {
	const longest = 64
	from, i := at, at
	for from > 0 && at-from < longest && isName(s[from-1]) {
		from--
	}
	if from > 0 && s[from-1] == '\\' && strings.IndexByte("nrt", s[from]) >= 0 && from < at {
		from++ // behind an escaped line break
	}
	for i < len(s) && i-at < longest && isName(s[i]) {
		i++
	}
	nameEnd = i
	how := nameStrength(s[from:i])
	if how < credential { // what is weak is left to the generic rule, which weighs it
		return nameEnd, span{}, false
	}
	i = skip(s, i, "\\")
	i = skip(s, i, `"'`)
	spaced := skip(s, i, " \t")
	separate := false // by a space, as the value of a flag
	loose := false    // what follows can be a sentence
	switch {
	case strings.HasPrefix(s[spaced:], "=="), strings.HasPrefix(s[spaced:], "::"), spaced == len(s):
		return nameEnd, span{}, false
	case strings.HasPrefix(s[spaced:], ":="), strings.HasPrefix(s[spaced:], "=>"):
		i = spaced + 2
	case s[spaced] == '=':
		i = spaced + 1
	case s[spaced] == ':':
		i = spaced + 1
		loose = i < len(s) && (s[i] == ' ' || s[i] == '\t')
	case spaced > i && strings.HasPrefix(s[from:], "--"):
		i, separate = spaced, true
	default:
		return nameEnd, span{}, false
	}
	i = skip(s, i, " \t")
	const judged = 256
	secret, quoted := valueAt(s, i, judged)
	value := s[secret.from:secret.to]
	switch {
	case plainValue(value), separate && strings.HasPrefix(value, "-"):
		return nameEnd, span{}, false
	case how == credential && !random(value):
		return nameEnd, span{}, false
	case loose && !quoted && !random(value) && !lineEnds(s, secret.to) && !shellAt(s, secret.to):
		return nameEnd, span{}, false // password: must be set
	}
	if len(value) >= judged {
		secret, _ = valueAt(s, i, farthest)
	}
	if value = s[secret.from:secret.to]; quoted && (strings.Contains(value, "$(") || strings.Contains(value, "`")) {
		return nameEnd, span{}, false // the output of a command, which must be seen
	}
	return nameEnd, secret, true
}

// shellAt reports whether a shell reads on at a position with something else
// than the word before it: masked with it, an approver would not see what runs.
func shellAt(s string, i int) bool {
	return i < len(s) && (strings.IndexByte(";|&<>`", s[i]) >= 0 || strings.HasPrefix(s[i:], "$("))
}

// valueAt is the value that begins at a position: quoted, with quotes that may
// be escaped, or up to where it can be told to end, at most the longest.
func valueAt(s string, i, longest int) (value span, quoted bool) {
	open := i
	i = skip(s, i, "\\")
	if i < len(s) && (s[i] == '"' || s[i] == '\'' || s[i] == '`') {
		quote := s[open : i+1]
		i++
		rest := s[i:min(len(s), i+longest)]
		end := strings.IndexByte(rest, '\n')
		if end < 0 {
			end = len(rest)
		}
		for j := 0; j < end; j++ {
			if strings.HasPrefix(rest[j:], quote) {
				return span{i, i + j}, true
			}
			if rest[j] == '\\' && len(quote) == 1 {
				j++
			}
		}
		return span{i, i + end}, true
	}
	i = open
	j := i
	for j < len(s) && j-i < longest && strings.IndexByte(" \t\r\n\"'\\", s[j]) < 0 && !shellAt(s, j) {
		if s[j] == ',' && nextFollows(s, j+1) {
			break
		}
		j++
	}
	for j > i && (s[j-1] == ')' && !strings.Contains(s[i:j], "(") || s[j-1] == '}' && !strings.Contains(s[i:j], "{") || s[j-1] == ']' && !strings.Contains(s[i:j], "[")) {
		j--
	}
	return span{i, j}, false
}

// nextFollows reports whether another name, or nothing, follows a separator.
func nextFollows(s string, i int) bool {
	j := i
	for j < len(s) && j-i < 64 && isName(s[j]) {
		j++
	}
	return j == len(s) || strings.IndexByte("=: \t\r\n\"'\\", s[j]) >= 0
}

func lineEnds(s string, i int) bool {
	i = skip(s, i, " \t")
	return i == len(s) || strings.IndexByte("\r\n,;&)}]\"'\\#", s[i]) >= 0
}

func skip(s string, i int, bytes string) int {
	for i < len(s) && strings.IndexByte(bytes, s[i]) >= 0 {
		i++
	}
	return i
}

func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }
func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isWord(c byte) bool  { return isUpper(c) || isLower(c) || isDigit(c) || c == '_' }
func isName(c byte) bool  { return isWord(c) || c == '.' || c == '-' || c == '/' }

func hasDigit(s string) bool { return strings.ContainsAny(s, "0123456789") }
