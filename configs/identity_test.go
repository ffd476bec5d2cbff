package configs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"countersign/configs"
	"countersign/identity"
)

// Every block of issuers in docs/identity.md loads as it stands, all of them together
// too, and can be used.
func TestIdentityPage(t *testing.T) {
	data, err := os.ReadFile("../docs/identity.md")
	if err != nil {
		t.Fatal(err)
	}
	const rest = "url: https://countersign.example.com/mcp\ndata: data\npolicy: policy\nclusters: [{name: a, inCluster: true}]\n"
	load := func(name, text string) *configs.Config {
		t.Helper()
		file := filepath.Join(t.TempDir(), "countersign.yaml")
		if err := os.WriteFile(file, []byte(rest+text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := configs.Load(file)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return c
	}
	all := "issuers:\n"
	var found []string
	for _, section := range regexp.MustCompile(`(?m)^## `).Split(string(data), -1)[1:] {
		name, _, _ := strings.Cut(section, "\n")
		for _, m := range block.FindAllStringSubmatch(section, -1) {
			c := load(name, m[1])
			if len(c.Issuers) != 1 {
				t.Errorf("%s: %d issuers", name, len(c.Issuers))
			}
			i := c.Issuers[0]
			if _, err := identity.New([]identity.Issuer{{URL: i.URL, Audience: i.Audience, Algorithms: i.Algorithms}}, c.URL); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			found, all = append(found, name), all+strings.TrimPrefix(m[1], "issuers:\n")
		}
	}
	if want := []string{"Okta", "Microsoft Entra ID", "Google", "Keycloak", "GitHub Actions", "Kubernetes"}; !slices.Equal(found, want) {
		t.Errorf("blocks for %v; want %v", found, want)
	}
	names := map[string]bool{}
	for _, i := range load("all together", all).Issuers {
		if names[i.UsernamePrefix] && !i.Kubernetes {
			t.Errorf("%s: another issuer has the prefix %q", i.URL, i.UsernamePrefix)
		}
		names[i.UsernamePrefix] = true
	}
}
