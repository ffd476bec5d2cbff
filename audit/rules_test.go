package audit

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
)

// The copy is gitleaks' file, unchanged.
func TestRules(t *testing.T) {
	if got, want := fmt.Sprintf("%x", sha256.Sum256([]byte(gitleaks))), "e163e53b9e7e8a8511e77271e2b323ed057759542a6d988258afe3a1fa329caf"; got != want {
		t.Errorf("gitleaks.toml has the digest %s; want that of v8.30.1, %s", got, want)
	}
	set := rules()
	seen := map[*rule]bool{}
	near := []string{}
	for i, rules := range set.rules {
		if set.words[i] == "" {
			t.Error("an empty keyword")
		}
		for _, r := range rules {
			if seen[r] || r.named {
				continue
			}
			seen[r] = true
			r.regex() // compiles
			for _, a := range r.allow {
				a.allows("x", "x")
			}
			if !r.anchored {
				near = append(near, r.id)
			}
		}
	}
	// The others are looked for at their keyword only, which costs little.
	slices.Sort(near)
	t.Logf("%d rules, %d keywords; looked for around a keyword: %v", len(seen), len(set.words), near)
	if len(seen) < 200 || len(near) > 40 {
		t.Errorf("%d rules, %d of them around a keyword", len(seen), len(near))
	}
}

func TestKeywords(t *testing.T) {
	type hit struct {
		word string
		at   int
	}
	words := []string{"he", "she", "his", "hers", "api_key"}
	for _, row := range []struct {
		text string
		want []hit
	}{
		{"", nil},
		{"uSHErs", []hit{{"she", 1}, {"he", 2}, {"hers", 2}}},
		{"API_KEY", []hit{{"api_key", 0}}},
		{"api_\r\n   key", []hit{{"api_key", 0}}},
		{`xapi\n_key he`, []hit{{"api_key", 1}, {"he", 11}}},
		{"api_ key", nil},
		{"h\nis h\ni", []hit{{"his", 0}}},
	} {
		var got []hit
		newKeywords(words).each(row.text, func(index, at int) { got = append(got, hit{words[index], at}) })
		slices.SortFunc(got, func(a, b hit) int { return 10*(a.at-b.at) + len(a.word) - len(b.word) })
		if !slices.Equal(got, row.want) {
			t.Errorf("%q: got %v; want %v", row.text, got, row.want)
		}
	}
}

func TestNameStrength(t *testing.T) {
	for want, names := range map[strength][]string{
		password:   {"password", "DB_PASSWORD", "db.password", "spring.datasource.password", "PGPASSWORD", "MYSQL_PWD", "passphrase", "userPassword", "PASSWORD_2"},
		credential: {"AUTH_TOKEN", "client-secret", "clientSecret", "apiKey", "API_KEY", "X-Api-Key", "token", "aws_secret_access_key", "awsCredentials", "DB_PASS", "AccountKey", "xsrfToken", "privateKey"},
		weak:       {"key", "cacheKey", "BASIC_AUTH", "sort.key"},
		noName: {"", "secretName", "secretKeyRef", "tokenName", "passwordFile", "keyName", "PASSWORD_FILE", "KEY_PATH", "SECRET_NAME", "AUTH_URL", "TOKEN_TTL", "TOKEN_EXPIRY", "PASSWORD_LENGTH",
			"maxTokens", "tokenizer", "tokenExpirationSeconds", "imagePullSecrets", "automountServiceAccountTokens", "checksum/secret", "passwordHash", "publicKey", "uid", "monkey", "nextPageToken", "tls.crt"},
	} {
		for _, name := range names {
			if got := nameStrength(name); got != want {
				t.Errorf("%s: got %d; want %d", name, got, want)
			}
		}
	}
}
