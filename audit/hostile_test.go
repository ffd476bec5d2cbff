package audit

import (
	"encoding/base64"
	"maps"
	"strings"
	"testing"
)

// hostile are fragments that a text made to be slow repeats: each makes a rule,
// or what is done beside the rules, look at the same bytes again and again.
func hostile() map[string]string {
	fragments := map[string]string{
		"a rule with an open end":         "curl -u a:b ",
		"the same, on lines":              "curl\n",
		"a name and no end":               "password=",
		"names":                           "key=token=",
		"quotes that do not close":        `password="`,
		"references":                      "password={",
		"values":                          "api_key=a1b2c3d4e5f6 ",
		"beginnings of keys":              "-----BEGIN PRIVATE KEY-----\n",
		"ends of keys":                    "-----END PRIVATE KEY-----",
		"lines of keys":                   strings.Repeat("n", 64) + "\n" + strings.Repeat("n", 64) + " ",
		"beginnings of tokens":            "eyJ",
		"beginnings of tokens, wrapped":   "eyJaaaaaaaaaaaaa\n",
		"tokens of a fixed length":        "glpat-",
		"characters of no width":          "pass\u200bword=",
		"escape codes":                    "\x1b[31mpassword\x1b[0m=",
		"escape codes that make new ones": `\u00\u001b[m1b[m`,
		"URLs":                            "://a:b",
		"manifests":                       "kind: secret data: a: ",
		"quoted values":                   `<add key="Password" value="`,
	}
	for name, fragment := range maps.Clone(fragments) {
		fragments[name+", in base64"] = base64.StdEncoding.EncodeToString([]byte(strings.Repeat(fragment, 300)))
	}
	return fragments
}

// Where keywords crowd, what they stand by is still found.
func TestCrowdedText(t *testing.T) {
	github := "gh" + "p_" + "0a1B2c3D4e5F6g7H8i9J0kLmNoPqRsTuVwXy"
	for _, crowd := range []string{"ghp_ ", "ghp_", "eyJ", "curl ", "curl\n", "key=", "api_key=a1b2c3d4e5f6, ", github + ",", "password= ", "://a:b"} {
		for _, secret := range []struct{ text, value string }{
			{" " + github, github}, {"\npassword=hunter2", "hunter2"}, {"\nX_API_KEY=Zk3x9VtRh8Gq2Lw0 ", "Zk3x9VtRh8Gq2Lw0"}, {"\ncurl -u app:hunter2 x", "hunter2"},
		} {
			for _, n := range []int{30, 300, 3000} {
				around := strings.Repeat(crowd, n)
				if got := MaskText(around + secret.text + "\n" + around); strings.Contains(got, secret.value) {
					t.Errorf("%q in %d of %q is left", secret.text, n, crowd)
				}
			}
		}
	}
	long := "eyJ" + strings.Repeat("a1B2c3D4", 2000)
	for _, crowd := range []string{"", strings.Repeat("eyJ ", 3000)} {
		if got, want := MaskText(crowd+long[:40]+"."+long+"."+long+" end"), crowd+"*** end"; got != want {
			t.Errorf("a long token is left: ...%q", got[max(len(got)-100, 0):])
		}
	}
}
