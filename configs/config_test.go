package configs

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// good is the shortest configuration that serves.
const good = `url: https://countersign.example.com/mcp
data: data
policy: policy
issuers:
- url: https://idp.example.com
clusters:
- name: local
  kubeconfig: kubeconfig
`

func load(t *testing.T, text string) (*Config, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "countersign.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	return c, path, err
}

func duration(d time.Duration) *time.Duration { return &d }

func TestDefaults(t *testing.T) {
	c, path, err := load(t, good)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	want := &Config{
		Listen: "127.0.0.1:8080", URL: "https://countersign.example.com/mcp",
		Data: filepath.Join(dir, "data"), AdminSocket: filepath.Join(dir, "data", "admin.sock"), Policy: filepath.Join(dir, "policy"),
		Limits:         Limits{PerPrincipal: 100, PerAddress: 200},
		Issuers:        []Issuer{{URL: "https://idp.example.com", ClockSkew: duration(30 * time.Second)}},
		Clusters:       []Cluster{{Name: "local", Kubeconfig: filepath.Join(dir, "kubeconfig")}},
		Approvals:      Approvals{Wait: duration(45 * time.Second), Cooldown: duration(5 * time.Minute), MaxPending: 20, GrantFor: duration(30 * time.Minute)},
		Audit:          Audit{EmergencyFile: filepath.Join(dir, "data", "emergency.jsonl"), Anchors: Anchors{Every: duration(10 * time.Minute), File: filepath.Join(dir, "data", "checkpoints")}},
		RequestTimeout: 30 * time.Second,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if got := c.Store(); got != filepath.Join(dir, "data", "countersign.db") {
		t.Errorf("the store is %s", got)
	}
}

// Every key is read, and a path is taken from the folder of the file.
func TestEveryKey(t *testing.T) {
	c, path, err := load(t, `listen: "[::1]:0"
url: http://localhost:8080/mcp
tls: {certFile: tls.crt, keyFile: /etc/tls.key}
allowedHosts: [a.example.com]
allowedOrigins: ["https://a.example.com"]
trustedProxies: [10.0.0.0/8, "fd00::/64"]
scopes: {read: "mcp:read", change: "mcp:change"}
limits: {perPrincipal: 20, perAddress: 50}
data: /var/lib/countersign
adminSocket: run/admin.sock
issuers:
- url: https://idp.example.com
  caFile: ca.pem
  algorithms: [ES256]
  usernameClaim: email
  groupsClaim: groups
  onBehalfOfClaim: owner
  usernamePrefix: "okta:"
  groupsPrefix: okta/
  clockSkew: 2m
- {url: "http://127.0.0.1:9000", kubernetes: true}
clusters:
- {name: east, kubeconfig: /etc/east, context: admin}
- name: west-1.eu
  inCluster: true
  serviceAccount: countersign/acting
  impersonate:
    usernamePrefix: "countersign:"
    groupsPrefix: ""
    serviceAccountIssuer: http://127.0.0.1:9000
    extra: [on-behalf-of, client, issuer]
policy: ../policy
approvers:
  sre: {local: [bea, carl], slack: [U012AB3CD, W012AB3CD], slackGroups: [S012AB3CD], emails: [dora@example.com]}
  all: {local: ["*"]}
people:
- {name: Bea, local: [bea], slack: [U012AB3CD], principals: [bea@example.com, "7d2f"]}
approvals: {wait: 0s, cooldown: 1m30s, maxPending: 3, grantFor: 0s}
slack:
  botTokenFile: secrets/bot
  appTokenFile: /etc/slack/app
  channel: C012AB3CD
  channelLabel: example.com/channel
  matchEmail: true
  apiURL: http://127.0.0.1:9999/api/
audit:
  anchors:
    every: 1h
    file: checkpoints
    configMap: {cluster: east, namespace: anchors}
    witnesses: [{url: "https://witness.example/w1/", key: witness.example/w1+0123abcd+BEcZ/AUsbTl3+w==}]
  emergencyFile: elsewhere/emergency.jsonl
requestTimeout: 10s
maxStoreBytes: 1073741824
`)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	want := &Config{
		Listen: "[::1]:0", URL: "http://localhost:8080/mcp", TLS: TLS{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: "/etc/tls.key"},
		AllowedHosts: []string{"a.example.com"}, AllowedOrigins: []string{"https://a.example.com"},
		TrustedProxies: []string{"10.0.0.0/8", "fd00::/64"}, Scopes: Scopes{Read: "mcp:read", Change: "mcp:change"}, Limits: Limits{PerPrincipal: 20, PerAddress: 50},
		Data: "/var/lib/countersign", AdminSocket: filepath.Join(dir, "run/admin.sock"), Policy: filepath.Join(filepath.Dir(dir), "policy"),
		Issuers: []Issuer{
			{URL: "https://idp.example.com", CAFile: filepath.Join(dir, "ca.pem"), Algorithms: []string{"ES256"}, UsernameClaim: "email", GroupsClaim: "groups", OnBehalfOfClaim: "owner",
				UsernamePrefix: "okta:", GroupsPrefix: "okta/", ClockSkew: duration(2 * time.Minute)},
			{URL: "http://127.0.0.1:9000", Kubernetes: true, ClockSkew: duration(30 * time.Second)},
		},
		Clusters: []Cluster{{Name: "east", Kubeconfig: "/etc/east", Context: "admin"}, {Name: "west-1.eu", InCluster: true, ServiceAccount: "countersign/acting", Impersonate: &Impersonate{
			UsernamePrefix: text("countersign:"), GroupsPrefix: text(""), ServiceAccountIssuer: "http://127.0.0.1:9000", Extra: []string{"on-behalf-of", "client", "issuer"},
		}}},
		Approvers: map[string]Approvers{
			"sre": {Local: []string{"bea", "carl"}, Slack: []string{"U012AB3CD", "W012AB3CD"}, SlackGroups: []string{"S012AB3CD"}, Emails: []string{"dora@example.com"}},
			"all": {Local: []string{"*"}},
		},
		People:    []Person{{Name: "Bea", Local: []string{"bea"}, Slack: []string{"U012AB3CD"}, Principals: []string{"bea@example.com", "7d2f"}}},
		Approvals: Approvals{Wait: duration(0), Cooldown: duration(90 * time.Second), MaxPending: 3, GrantFor: duration(0)},
		Slack: &Slack{
			BotTokenFile: filepath.Join(dir, "secrets/bot"), AppTokenFile: "/etc/slack/app", Channel: "C012AB3CD",
			ChannelLabel: "example.com/channel", MatchEmail: true, APIURL: "http://127.0.0.1:9999/api/",
		},
		Audit: Audit{EmergencyFile: filepath.Join(dir, "elsewhere/emergency.jsonl"), Anchors: Anchors{
			Every: duration(time.Hour), File: filepath.Join(dir, "checkpoints"), ConfigMap: &ConfigMapAnchor{Cluster: "east", Namespace: "anchors"},
			Witnesses: []Witness{{URL: "https://witness.example/w1/", Key: "witness.example/w1+0123abcd+BEcZ/AUsbTl3+w=="}},
		}},
		RequestTimeout: 10 * time.Second, MaxStoreBytes: 1 << 30,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if got := c.ApproverSets(); !slices.Equal(got, []string{"all", "sre"}) {
		t.Errorf("approver sets %v", got)
	}
	// A key that this test does not set is one that no test reads.
	for i := range reflect.TypeFor[Config]().NumField() {
		if field := reflect.TypeFor[Config]().Field(i); reflect.ValueOf(*c).Field(i).IsZero() {
			t.Errorf("%s is not set", field.Name)
		}
	}
}

// With prefixes of the issuers, or none but the cluster's own service accounts, a
// cluster needs none.
func TestImpersonateWithoutPrefixes(t *testing.T) {
	const cluster = "- {name: b, inCluster: true, impersonate: {serviceAccountIssuer: 'https://own'}}\n"
	for _, issuers := range []string{
		"- {url: https://own, kubernetes: true}\n",
		"- {url: https://own, kubernetes: true}\n- {url: https://a, usernamePrefix: 'a:', groupsPrefix: 'a:'}\n- {url: https://b, usernamePrefix: 'b:', groupsPrefix: 'b:'}\n",
	} {
		if c, _, err := load(t, strings.Replace(good, "- url: https://idp.example.com\n", issuers, 1)+cluster); err != nil || c.Clusters[1].Impersonate.UsernamePrefix != nil {
			t.Errorf("%s: %v", issuers, err)
		}
	}
}

func text(s string) *string { return &s }

func TestMistakes(t *testing.T) {
	const clusters = "clusters:\n- name: local\n  kubeconfig: kubeconfig\n"
	const inSlack = "slack: {botTokenFile: a, appTokenFile: b, channel: C012AB3CD}\n"
	for _, row := range []struct {
		name, old, new string // in good
		want           []string
	}{
		{"three at once", good, "lissten: x\nurl: https://countersign.example.com/mcp\ndata: d\npolicy: p\nissuers:\n- url: https://idp.example.com\nclusters:\n- name: Local\n  kubeconfig: k\nrequestTimeout: soon\n",
			[]string{`1: unknown key "lissten"`, `8: cluster name is "Local"; lower-case letters, digits, - and . are expected`, `10: "soon" where a duration such as "45s" is expected`}},
		{"nothing", good, "", []string{": is empty"}},
		{"everything missing", good, "listen: 127.0.0.1:0\n", []string{
			"1: url is missing: the address of the MCP endpoint, such as https://countersign.example.com/mcp", "1: data is missing: the folder for the store",
			"1: policy is missing: the folder of the policy files", "1: issuers is missing: without one nobody can log in", "1: clusters is missing: name at least one"}},
		{"two documents", "url:", "---\nurl: https://countersign.example.com/mcp\n---\nurl:", []string{
			"1: data is missing: the folder for the store", "1: policy is missing: the folder of the policy files", "1: issuers is missing: without one nobody can log in", "1: clusters is missing: name at least one",
			"3: a second document: a configuration is one"}},
		{"listen without a port", "data:", "listen: localhost\ndata:", []string{`2: listen is "localhost"; host:port is expected, such as 127.0.0.1:8080`}},
		{"url without a scheme", "https://countersign.example.com/mcp", "countersign.example.com/mcp", []string{`1: url is "countersign.example.com/mcp"; an https address is expected`}},
		{"url of another scheme", "https://countersign", "ftp://countersign", []string{`1: url is "ftp://countersign.example.com/mcp"; an https address is expected`}},
		{"url with a query", "/mcp", "/mcp?a=b", []string{`1: url is "https://countersign.example.com/mcp?a=b"; an https address is expected`}},
		{"url without a path", "/mcp", "", []string{`1: url is "https://countersign.example.com"; it needs a path without a slash at its end, such as /mcp`}},
		{"url with a slash at its end", "/mcp", "/mcp/", []string{`1: url is "https://countersign.example.com/mcp/"; it needs a path without a slash at its end, such as /mcp`}},
		{"url with a pattern for a path", "/mcp", "/{id}", []string{`1: url is "https://countersign.example.com/{id}"; its path is to be plain`}},
		{"half a byte of store", "data:", "maxStoreBytes: 0.5\ndata:", []string{`2: "0.5" where a whole number is expected`}},
		{"tokens in the clear", "https://countersign", "http://countersign", []string{`1: url is "http://countersign.example.com/mcp"; plain http is for this machine only: tokens would travel in the clear`}},
		{"tls without a key", "data:", "tls: {certFile: a}\ndata:", []string{"2: tls needs both certFile and keyFile"}},
		{"tls without a certificate", "data:", "tls: {keyFile: a}\ndata:", []string{"2: tls needs both certFile and keyFile"}},
		{"a proxy's address", "data:", "trustedProxies: [10.0.0.1]\ndata:", []string{`2: "10.0.0.1" is no network, such as 10.0.0.0/8 or 10.1.2.3/32`}},
		{"two scopes in one", "data:", "scopes: {read: a b}\ndata:", []string{`2: scope "a b" is not one OAuth scope: it holds a space, a quote or a backslash`}},
		{"no requests at all", "data:", "limits: {perPrincipal: -1}\ndata:", []string{"2: perPrincipal is -1; from 1 to 100000 requests a second are expected"}},
		{"issuer over plain http", "https://idp", "http://idp", []string{`5: issuer url is "http://idp.example.com"; an https address is expected`}},
		{"issuer without an address", "- url: https://idp.example.com", "- groupsClaim: groups", []string{`5: issuer url is ""; an https address is expected`}},
		{"issuer twice", "clusters:", "- url: https://idp.example.com\nclusters:", []string{"6: issuer https://idp.example.com stands there twice"}},
		{"an audience with a space", "clusters:", "  audience: api://a b\nclusters:", []string{`6: audience is "api://a b"; one name without spaces is expected, such as an application's id or api://countersign`}},
		{"an endless audience", "clusters:", "  audience: " + strings.Repeat("x", 256) + "\nclusters:", []string{`6: audience is "` + strings.Repeat("x", 80) + `"; one name without spaces is expected, such as an application's id or api://countersign`}},
		{"an audience of a Kubernetes issuer", "clusters:", "  kubernetes: true\n  audience: x\nclusters:", []string{"7: a kubernetes issuer's tokens are asked for with any audience: leave audience out and ask for the url"}},
		{"groups of a Kubernetes issuer", "clusters:", "  kubernetes: true\n  groupsClaim: groups\nclusters:", []string{"7: a kubernetes issuer's groups come from Kubernetes: leave groupsClaim out"}},
		{"a clock that is far off", "clusters:", "  clockSkew: 5m1s\nclusters:", []string{"6: clockSkew is 5m1s; from 0s to 5m0s is expected"}},
		{"a clock that is less than off", "clusters:", "  clockSkew: -1s\nclusters:", []string{"6: clockSkew is -1s; from 0s to 5m0s is expected"}},
		{"a prefix of Kubernetes", "clusters:", "  groupsPrefix: 'system:'\nclusters:", []string{`6: groupsPrefix is "system:"; a few characters that can be seen are expected, such as okta:, and not system:, which is for Kubernetes`}},
		{"a prefix that is not seen", "clusters:", "  usernamePrefix: \"\\u200b\"\nclusters:", []string{`6: usernamePrefix is "\u200b"; a few characters that can be seen are expected, such as okta:, and not system:, which is for Kubernetes`}},
		{"no issuers", "issuers:\n- url: https://idp.example.com\n", "issuers: []\n", []string{"1: issuers is missing: without one nobody can log in"}},
		{"cluster without a name", "- name: local\n  kubeconfig", "- kubeconfig", []string{`7: cluster name is ""; lower-case letters, digits, - and . are expected`}},
		{"cluster twice", clusters, clusters + "- {name: local, inCluster: true}\n", []string{"9: cluster local stands there twice"}},
		{"cluster without a credential", "  kubeconfig: kubeconfig\n", "", []string{"7: cluster local needs either kubeconfig or inCluster: true"}},
		{"cluster with two credentials", "  kubeconfig: kubeconfig\n", "  kubeconfig: a\n  inCluster: true\n", []string{"7: cluster local needs either kubeconfig or inCluster: true"}},
		{"a service account without a namespace", clusters, clusters + "  serviceAccount: acting\n", []string{`9: serviceAccount is "acting"; namespace/name is expected`}},
		{"a path for a service account", clusters, clusters + "  serviceAccount: a/../b\n", []string{`9: serviceAccount is "a/../b"; namespace/name is expected`}},
		{"impersonation without prefixes", clusters, clusters + "  impersonate: {}\n", []string{
			`9: impersonate.usernamePrefix is missing, such as "countersign:"; "" lets whoever chooses names at the issuer choose any in the cluster but system: ones`,
			`9: impersonate.groupsPrefix is missing, such as "countersign:"; "" lets whoever chooses names at the issuer choose any in the cluster but system: ones`}},
		{"impersonation as Kubernetes", clusters, clusters + "  impersonate:\n    usernamePrefix: ''\n    groupsPrefix: 'System:'\n", []string{`11: groupsPrefix is "System:"; system: is Kubernetes' own`}},
		{"service accounts of nobody", clusters, clusters + "  impersonate:\n    usernamePrefix: ''\n    groupsPrefix: ''\n    serviceAccountIssuer: https://idp.example.com\n", []string{
			`12: serviceAccountIssuer is "https://idp.example.com"; the url of one of issuers with kubernetes: true is expected`}},
		{"issuers that name each other's users", clusters, "- {url: 'https://b', usernamePrefix: 'b:', groupsPrefix: 'b:'}\n- {url: 'https://c', usernamePrefix: 'b:c:', groupsPrefix: 'c:'}\n" + strings.Replace(clusters, "local\n", "local\n  impersonate: {usernamePrefix: '', groupsPrefix: ''}\n", 1), []string{
			"10: with impersonate, each of several issuers needs a usernamePrefix of its own, which begins no other: or one could name the users or groups of another",
			"10: with impersonate, each of several issuers needs a groupsPrefix of its own, which begins no other: or one could name the users or groups of another"}},
		{"extras that nobody knows", clusters, clusters + "  impersonate:\n    usernamePrefix: ''\n    groupsPrefix: ''\n    extra: [op, client, client]\n", []string{
			`12: extra is "op"; on-behalf-of, client and issuer are known, each once`, `12: extra is "client"; on-behalf-of, client and issuer are known, each once`}},
		{"approver set with a space", clusters, clusters + "approvers:\n  on call: {local: [a]}\n", []string{`10: approver set name is "on call"; lower-case letters, digits, - and . are expected`}},
		{"waiting too long", clusters, clusters + "approvals: {wait: 46s}\n", []string{"9: wait is 46s; from 0s to 45s is expected"}},
		{"waiting less than nothing", clusters, clusters + "approvals:\n  wait: -1s\n", []string{"10: wait is -1s; from 0s to 45s is expected"}},
		{"a cool-down of days", clusters, clusters + "approvals:\n  cooldown: 25h\n", []string{"10: cooldown is 25h0m0s; from 0s to 24h0m0s is expected"}},
		{"requests of hours", clusters, clusters + "requestTimeout: 1h\n", []string{"9: requestTimeout is 1h0m0s; from 0s to 10m0s is expected"}},
		{"a store of less than nothing", clusters, clusters + "maxStoreBytes: -1\n", []string{"9: maxStoreBytes must not be negative"}},
		{"a key of another's", clusters, clusters + "teams: {}\n", []string{`9: unknown key "teams"`}},
		{"a grant of days", clusters, clusters + "approvals:\n  grantFor: 8h0m1s\n", []string{"10: grantFor is 8h0m1s; from 0s to 8h0m0s is expected"}},
		{"a grant of less than nothing", clusters, clusters + "approvals:\n  grantFor: -1s\n", []string{"10: grantFor is -1s; from 0s to 8h0m0s is expected"}},
		{"fewer questions than none", clusters, clusters + "approvals:\n  maxPending: -1\n", []string{"10: maxPending is -1; from 1 to 10000 is expected"}},
		{"questions without end", clusters, clusters + "approvals:\n  maxPending: 10001\n", []string{"10: maxPending is 10001; from 1 to 10000 is expected"}},
		{"half a question", clusters, clusters + "approvals:\n  maxPending: 1.5\n", []string{`10: "1.5" where a whole number is expected`}},
		{"people of Slack without Slack", clusters, clusters + "approvers:\n  a: {slack: [U012AB3CD]}\n  b: {slackGroups: [S012AB3CD]}\n  c: {emails: [a@example.com]}\n  d: {local: [a]}\n", []string{
			"10: approver set a has people of Slack, but slack is not configured", "11: approver set b has people of Slack, but slack is not configured", "12: approver set c has people of Slack, but slack is not configured"}},
		{"emails that do not count", clusters, clusters + inSlack + "approvers:\n  a:\n    emails: [a@example.com]\n", []string{"12: emails count only with slack.matchEmail: true"}},
		{"names where Slack has ids", clusters, clusters + inSlack + "approvers:\n  a: {slack: [bea, U012AB3CD, u012ab3cd], slackGroups: [U012AB3CD, '@sre']}\npeople:\n- {name: a, local: [a], slack: ['@bea']}\n", []string{
			`11: "bea" is not the id of a Slack user, such as U012AB3CD`, `11: "u012ab3cd" is not the id of a Slack user, such as U012AB3CD`,
			`11: "U012AB3CD" is not the id of a Slack user group, such as S012AB3CD`, `11: "@sre" is not the id of a Slack user group, such as S012AB3CD`,
			`13: "@bea" is not the id of a Slack user, such as U012AB3CD`}},
		{"a person without a name", clusters, clusters + "people:\n- {local: [a], principals: [b]}\n", []string{"10: a person has a name and at least two accounts: local, slack or principals"}},
		{"a person of one account", clusters, clusters + "people:\n- {name: a, principals: [b]}\n", []string{"10: a person has a name and at least two accounts: local, slack or principals"}},
		{"everybody as a person", clusters, clusters + "people:\n- {name: a, local: [\"*\"], principals: [\"\"]}\n", []string{`10: "*" is no account of one person`, `10: "" is no account of one person`}},
		{"one account of two people", clusters, clusters + "people:\n- {name: Anna, local: [a], principals: [anna@example.com]}\n- {name: Ann, local: [b], principals: [Anna@example.com]}\n- {name: a, local: [c], principals: [a]}\n", []string{
			"11: principals Anna@example.com stands there already, as an account of Anna: write all accounts of a person in one place"}},
		{"Slack begun and left", clusters, clusters + "slack:\n", []string{`9: key "slack" is empty: fill it in or leave it out`}},
		{"an approver set of nobody", clusters, clusters + "approvers: {sre: {}}\n", []string{"9: approver set sre has nobody in it"}},
		{"Slack with nothing", clusters, clusters + "slack: {}\n", []string{
			"9: slack.botTokenFile is missing: a file with the token of the app's bot, xoxb-...", "9: slack needs either appTokenFile (Socket Mode) or signingSecretFile (signed HTTP)",
			`9: slack.channel is ""; the id of a channel is wanted, such as C012AB3CD: in Slack, click the channel's name; the id stands at the end of the tab About`}},
		{"Slack by both ways", clusters, clusters + strings.Replace(inSlack, "}", ", signingSecretFile: c}", 1), []string{"9: slack needs either appTokenFile (Socket Mode) or signingSecretFile (signed HTTP)"}},
		{"the name of a channel", clusters, clusters + strings.Replace(inSlack, "C012AB3CD", "'#approvals'", 1), []string{
			`9: slack.channel is "#approvals"; the id of a channel is wanted, such as C012AB3CD: in Slack, click the channel's name; the id stands at the end of the tab About`}},
		{"a person's id for a channel", clusters, clusters + strings.Replace(inSlack, "C012AB3CD", "U012AB3CD", 1), []string{
			`9: slack.channel is "U012AB3CD"; the id of a channel is wanted, such as C012AB3CD: in Slack, click the channel's name; the id stands at the end of the tab About`}},
		{"tokens to Slack in the clear", clusters, clusters + strings.Replace(inSlack, "}", ", apiURL: 'http://slack.example/api/'}", 1), []string{`9: slack.apiURL is "http://slack.example/api/"; an https address that ends with / is expected`}},
		{"half an address", clusters, clusters + strings.Replace(inSlack, "}", ", apiURL: 'https://slack.example/api'}", 1), []string{`9: slack.apiURL is "https://slack.example/api"; an https address that ends with / is expected`}},
		{"a token in the configuration", clusters, clusters + strings.Replace(inSlack, "}", ", botToken: xoxb-1}", 1), []string{`9: unknown key "botToken"`}},
		{"anchors too often", clusters, clusters + "audit:\n  anchors:\n    every: 59s\n", []string{"11: every is 59s; from 1m0s to 24h0m0s is expected"}},
		{"anchors too seldom", clusters, clusters + "audit:\n  anchors:\n    every: 25h\n", []string{"11: every is 25h0m0s; from 1m0s to 24h0m0s is expected"}},
		{"no anchor at all", clusters, clusters + "audit:\n  anchors:\n    file: none\n", []string{"11: file is none, and there is no other anchor: who edits the log could not be found out"}},
		{"ConfigMaps nowhere", clusters, clusters + "audit:\n  anchors:\n    configMap: {cluster: east, namespace: a/b}\n", []string{
			`11: configMap.cluster is "east"; the name of one of clusters is expected`, `11: configMap.namespace is "a/b"; the name of a namespace is expected, best one for nothing else`}},
		{"bad witnesses", clusters, clusters + "audit:\n  anchors:\n    witnesses:\n    - {url: 'http://w.example', key: w+0123abcd+BEcZ}\n    - {url: 'https://w.example', key: w+0123abcd+BEcZ}\n    - {url: 'https://v.example?a', key: v}\n    - {url: 'ftp://127.0.0.1', key: u+0123abcd+BEcZ}\n", []string{
			`12: witness url is "http://w.example"; an https address is expected`, `13: witness w stands there twice`,
			`14: witness url is "https://v.example?a"; an https address is expected`, `14: witness key is "v"; NAME+HASH+KEY is expected, as its operator publishes it`,
			`15: witness url is "ftp://127.0.0.1"; an https address is expected`}},
		{"a recipient that is none", clusters, clusters + "audit:\n  recipients: [AGE-SECRET-KEY-1, age1]\n", []string{
			"10: this is not a public key of age, age1..., as age-keygen prints it", "10: this is not a public key of age, age1..., as age-keygen prints it"}},
		{"records kept for an hour", clusters, clusters + "audit:\n  retention:\n    records: 1h\n", []string{"11: records is 1h0m0s; 24h0m0s or more is expected, or 0 to keep all"}},
		{"payloads kept longer than records", clusters, clusters + "audit:\n  retention: {payloads: 48h, records: 24h}\n", []string{"10: payloads are kept for 48h0m0s, and records for 24h0m0s: a payload goes with its record at the latest"}},
		{"an unknown key of an issuer", "clusters:", "  audiences: x\nclusters:", []string{`6: unknown key "audiences"`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := strings.Replace(good, row.old, row.new, 1)
			if text == good {
				t.Fatal("nothing was changed")
			}
			c, path, err := load(t, text)
			var want []string
			for _, line := range row.want {
				want = append(want, fmt.Sprintf("%s:%s", path, strings.TrimPrefix(line, ":")))
			}
			if c != nil || err == nil || err.Error() != strings.Join(want, "\n") {
				t.Errorf("got\n%v\nwant\n%s", err, strings.Join(want, "\n"))
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent.yaml")); err == nil || !strings.HasPrefix(err.Error(), "reading configuration: ") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// The file for checkpoints can be left out where there is another anchor.
func TestNoAnchorFile(t *testing.T) {
	c, _, err := load(t, good+"audit: {anchors: {file: none, configMap: {cluster: local, namespace: anchors}}}\n")
	if err != nil || c.AnchorFile() != "" {
		t.Errorf("%q, %v", c.AnchorFile(), err)
	}
	if c, _, err = load(t, good); err != nil || c.AnchorFile() != filepath.Join(c.Data, "checkpoints") {
		t.Errorf("%q, %v", c.AnchorFile(), err)
	}
}

// Slack over signed HTTP, with the address of the real one.
func TestSlackDefaults(t *testing.T) {
	c, path, err := load(t, good+"slack: {botTokenFile: a, signingSecretFile: b, channel: G012AB3CD}\napprovals: {maxPending: 10000, grantFor: 8h}\n")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if want := (&Slack{BotTokenFile: filepath.Join(dir, "a"), SigningSecretFile: filepath.Join(dir, "b"), Channel: "G012AB3CD", APIURL: "https://slack.com/api/"}); !reflect.DeepEqual(c.Slack, want) {
		t.Errorf("got  %+v\nwant %+v", c.Slack, want)
	}
	if c.Approvals.MaxPending != 10_000 || *c.Approvals.GrantFor != 8*time.Hour {
		t.Errorf("got %+v", c.Approvals)
	}
}

// The example says nothing that is not so, also in what it leaves commented.
func TestExample(t *testing.T) {
	data, err := os.ReadFile("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := load(t, string(data)); err != nil {
		t.Error(err)
	}
	c, _, err := load(t, regexp.MustCompile(`(?m)^# ( *(- )?[a-zA-Z]+:)`).ReplaceAllString(string(data), "$1"))
	if err != nil || c.Slack == nil || len(c.People) == 0 || c.Approvals.MaxPending == 0 || len(c.Approvers["operators"].SlackGroups) == 0 || len(c.Audit.Anchors.Witnesses) == 0 {
		t.Errorf("with what is commented: %+v, %v", c, err)
	}
}
