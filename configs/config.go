package configs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"countersign/approvals"
	"countersign/strictyaml"
)

// Config is the whole configuration. Relative paths are taken from the folder
// of the file they stand in.
type Config struct {
	// Listen is the address that the MCP endpoint listens on, "127.0.0.1:8080".
	// Port 0 takes a free one, which the server prints.
	Listen string `yaml:"listen"`
	// URL is the canonical address of the MCP endpoint, as clients know it. It
	// is the audience that tokens must have.
	URL string `yaml:"url"`
	// TLS is the certificate to serve with; without it the server speaks HTTP
	// and should stand behind something that speaks TLS.
	TLS TLS `yaml:"tls"`
	// AllowedHosts and AllowedOrigins are accepted in the Host and Origin
	// headers, beside those of URL.
	AllowedHosts   []string `yaml:"allowedHosts"`
	AllowedOrigins []string `yaml:"allowedOrigins"`
	// TrustedProxies are the networks, 10.0.0.0/8, of what stands in front. From
	// them, and from nobody else, X-Forwarded-For says where a caller is.
	TrustedProxies []string `yaml:"trustedProxies"`
	// Scopes are what tokens must be for, beside what policy says about who calls.
	Scopes Scopes `yaml:"scopes"`
	// Limits bound how often one caller is answered, whatever it asks for.
	Limits Limits `yaml:"limits"`
	// Data is the folder of the store, its key and the admin socket. The
	// server makes it, mode 0700.
	Data string `yaml:"data"`
	// AdminSocket is the path of the admin socket; by default admin.sock in Data.
	AdminSocket string `yaml:"adminSocket"`
	// Issuers are the OpenID Connect issuers whose tokens are accepted.
	Issuers []Issuer `yaml:"issuers"`
	// Clusters are the clusters that the server governs.
	Clusters []Cluster `yaml:"clusters"`
	// Policy is the folder of the policy files.
	Policy string `yaml:"policy"`
	// Approvers are the approver sets that policy rules name.
	Approvers map[string]Approvers `yaml:"approvers"`
	// People says which accounts are one person's: nobody votes twice, or decides
	// what an agent does for them.
	People []Person `yaml:"people"`
	// Approvals says how questions to people behave.
	Approvals Approvals `yaml:"approvals"`
	// Slack is where people are asked; without it only the admin socket is.
	Slack *Slack `yaml:"slack"`
	// Audit is about the log of what happened.
	Audit Audit `yaml:"audit"`
	// RequestTimeout bounds one request to an API server; 30s when absent.
	RequestTimeout time.Duration `yaml:"requestTimeout"`
	// MaxStoreBytes is the size at which the store takes no more; 0 is no limit. When
	// nine tenths are used, nothing begins any more.
	MaxStoreBytes strictyaml.Int `yaml:"maxStoreBytes"`
}

// TLS names a certificate and its key, both PEM files.
type TLS struct {
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
}

// Scopes are OAuth scopes, in a token's claim scope or scp. One that is absent is
// not demanded.
type Scopes struct {
	// Read is demanded by tools that change nothing, prompts and resources; Change,
	// and Read with it, by all other tools.
	Read   string `yaml:"read"`
	Change string `yaml:"change"`
}

// Limits are requests a second; twice as many may come at once.
type Limits struct {
	// PerPrincipal is for one issuer and subject; 100 when absent.
	PerPrincipal strictyaml.Int `yaml:"perPrincipal"`
	// PerAddress is for one address, or the /64 that an IPv6 address lies in; 200
	// when absent. It holds before anybody has been asked for a token.
	PerAddress strictyaml.Int `yaml:"perAddress"`
}

// Issuer is one OpenID Connect issuer.
type Issuer struct {
	// URL is the issuer exactly as its tokens' iss says it.
	URL string `yaml:"url"`
	// Audience is what its tokens are for, in place of the configuration's url: of an
	// issuer whose audiences are never addresses, such as Entra ID's for v2 tokens.
	Audience string `yaml:"audience"`
	// CAFile holds the certificates to trust for it; the system's when absent.
	CAFile string `yaml:"caFile"`
	// Algorithms are the accepted signature algorithms; RS256 and ES256 when absent.
	Algorithms []string `yaml:"algorithms"`
	// UsernameClaim is the claim that becomes the user name; sub when absent. Here
	// and in the next two, dots lead into nested claims (realm_access.roles); a
	// claim of exactly the name that is written comes first.
	UsernameClaim string `yaml:"usernameClaim"`
	// GroupsClaim is the claim that becomes the groups; no groups when absent.
	GroupsClaim string `yaml:"groupsClaim"`
	// OnBehalfOfClaim says for whom an agent acts; act (RFC 8693) when absent.
	OnBehalfOfClaim string `yaml:"onBehalfOfClaim"`
	// UsernamePrefix and GroupsPrefix are put before user names and groups, so that
	// two issuers cannot name the same.
	UsernamePrefix string `yaml:"usernamePrefix"`
	GroupsPrefix   string `yaml:"groupsPrefix"`
	// ClockSkew is how far the issuer's clock may be from this machine's; 30s when
	// absent, 5m at most.
	ClockSkew *time.Duration `yaml:"clockSkew"`
	// Kubernetes is true for an API server's service-account issuer: groups
	// are then those that Kubernetes gives to the account.
	Kubernetes bool `yaml:"kubernetes"`
}

// Cluster is one cluster and where the server's credential for it is.
type Cluster struct {
	// Name is how policy, tools and records call it.
	Name string `yaml:"name"`
	// Kubeconfig is a file; Context one of its contexts, the current one when absent.
	Kubeconfig string `yaml:"kubeconfig"`
	Context    string `yaml:"context"`
	// InCluster is true to use the credential of the pod that the server runs in.
	InCluster bool `yaml:"inCluster"`
	// ServiceAccount, namespace/name, is who acts. The credential above then serves
	// for nothing but to ask for tokens of it, for an hour each.
	ServiceAccount string `yaml:"serviceAccount"`
	// Impersonate makes the cluster see the caller: its RBAC and its audit log then
	// apply to the agent. Without it the cluster sees the server alone.
	Impersonate *Impersonate `yaml:"impersonate"`
}

// Impersonate says what a cluster calls the principals.
type Impersonate struct {
	// UsernamePrefix and GroupsPrefix stand before the names that tokens hold, so
	// that nobody at an issuer can choose one that means something in the cluster.
	// Both must be written, if only as "", unless all issuers have prefixes.
	UsernamePrefix *string `yaml:"usernamePrefix"`
	GroupsPrefix   *string `yaml:"groupsPrefix"`
	// ServiceAccountIssuer is the url of the issuer whose service accounts are this
	// cluster's own, and keep their names and groups.
	ServiceAccountIssuer string `yaml:"serviceAccountIssuer"`
	// Extra are what else the cluster is shown: on-behalf-of, client, issuer.
	Extra []string `yaml:"extra"`
}

// Approvers is one approver set.
type Approvers struct {
	// Local are user names on this machine, as the kernel reports them at the
	// other end of the admin socket; "*" is everybody whom the socket lets in,
	// which is the user that the server runs as, and root.
	Local []string `yaml:"local"`
	// Slack are ids of Slack users, U012AB3CD.
	Slack []string `yaml:"slack"`
	// SlackGroups are ids of Slack user groups, S012AB3CD.
	SlackGroups []string `yaml:"slackGroups"`
	// Emails are confirmed e-mail addresses of Slack users; they count only with
	// slack.matchEmail, because in some workspaces people can change their own.
	Emails []string `yaml:"emails"`
}

// Person is somebody who has more than one account.
type Person struct {
	Name string `yaml:"name"`
	// Local are user names on this machine, Slack ids of Slack users, and
	// Principals what tokens call the person: a user name, a subject, or for whom
	// an agent acts.
	Local      []string `yaml:"local"`
	Slack      []string `yaml:"slack"`
	Principals []string `yaml:"principals"`
}

// Slack says how the server reaches Slack, and who may answer it.
type Slack struct {
	// BotTokenFile holds the token of the app's bot, xoxb-...
	BotTokenFile string `yaml:"botTokenFile"`
	// AppTokenFile holds the app-level token, xapp-..., with which the server
	// opens a Socket Mode connection: nothing has to reach the server.
	AppTokenFile string `yaml:"appTokenFile"`
	// SigningSecretFile holds the secret with which Slack signs what it sends to
	// /slack/interactions instead.
	SigningSecretFile string `yaml:"signingSecretFile"`
	// Channel is the id of the channel where people are asked, C012AB3CD.
	Channel string `yaml:"channel"`
	// ChannelLabel is a label of Namespaces whose value is the id of the channel
	// for questions about them.
	ChannelLabel string `yaml:"channelLabel"`
	// MatchEmail lets approvers.<set>.emails count.
	MatchEmail bool `yaml:"matchEmail"`
	// APIURL is the address of the Web API; https://slack.com/api/ when absent.
	APIURL string `yaml:"apiURL"`
}

// Approvals says how questions to people behave.
type Approvals struct {
	// Wait is how long a call waits for a person before it answers
	// pending_approval; 45s when absent, which is also the most.
	Wait *time.Duration `yaml:"wait"`
	// Cooldown is how long after a rejection the same call is refused; 5m when absent.
	Cooldown *time.Duration `yaml:"cooldown"`
	// MaxPending is how many questions of one principal may be open; 20 when absent.
	MaxPending strictyaml.Int `yaml:"maxPending"`
	// GrantFor is for how long an approver may consent to a kind of change
	// instead of one; 30m when absent, 0s is not at all.
	GrantFor *time.Duration `yaml:"grantFor"`
}

// Defaults, in one place.
const (
	defaultListen         = "127.0.0.1:8080"
	maxWait               = 45 * time.Second
	defaultCooldown       = 5 * time.Minute
	defaultRequestTimeout = 30 * time.Second
	defaultMaxPending     = 20
	defaultPerPrincipal   = 100
	defaultPerAddress     = 200
	maxRate               = 100_000
	defaultGrantFor       = 30 * time.Minute
	maxGrantFor           = 8 * time.Hour
	defaultClockSkew      = 30 * time.Second
	maxClockSkew          = 5 * time.Minute
	defaultSlackAPI       = "https://slack.com/api/"
)

// scope is one OAuth scope: RFC 6749, section 3.3.
var scope = regexp.MustCompile(`^[\x21\x23-\x5b\x5d-\x7e]+$`)

// name is what clusters and approver sets may be called.
var name = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// Load reads and checks a configuration. The error lists every mistake.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w; name the file with --config (configs/example.yaml is one to begin with)", err)
	}
	var configs []*Config
	documents, err := strictyaml.Decode(path, data, func() any {
		configs = append(configs, &Config{})
		return configs[len(configs)-1]
	})
	var problems strictyaml.Problems
	if err != nil && !errors.As(err, &problems) {
		return nil, err
	}
	if len(documents) == 0 {
		return nil, problems
	}
	c, document := configs[0], documents[0]
	if len(documents) > 1 {
		problems = append(problems, documents[1].Problem(nil, "a second document: a configuration is one"))
	}
	for _, problem := range document.Empty() { // begun and not finished is not left out
		if c.Slack == nil && strings.HasPrefix(problem.Text, `key "slack" `) {
			problems = append(problems, problem)
		}
	}
	c.check(func(at []any, format string, args ...any) {
		problems = append(problems, document.Problem(at, format, args...))
	})
	slices.SortStableFunc(problems, func(a, b strictyaml.Problem) int { return a.Line - b.Line })
	if err := problems.OrNil(); err != nil {
		return nil, err
	}
	c.complete(filepath.Dir(path))
	return c, nil
}

// ApproverSets names the approver sets, for policy to check its rules against.
func (c *Config) ApproverSets() []string {
	var names []string
	for name := range c.Approvers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (c *Config) check(report func(at []any, format string, args ...any)) {
	if c.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			report([]any{"listen"}, "listen is %q; host:port is expected, such as %s", c.Listen, defaultListen)
		}
	}
	c.checkURL(report)
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		report([]any{"tls"}, "tls needs both certFile and keyFile")
	}
	c.checkCallers(report)
	if c.Data == "" {
		report(nil, "data is missing: the folder for the store")
	}
	if c.Policy == "" {
		report(nil, "policy is missing: the folder of the policy files")
	}
	positive := func(d *time.Duration, most time.Duration, at ...any) {
		if d != nil && (*d < 0 || most > 0 && *d > most) {
			report(at, "%v is %s; from 0s to %s is expected", at[len(at)-1], d, most)
		}
	}
	if len(c.Issuers) == 0 {
		report(nil, "issuers is missing: without one nobody can log in")
	}
	seen := map[string]bool{}
	for i, issuer := range c.Issuers {
		u, err := url.Parse(issuer.URL)
		switch {
		case err != nil || u.Scheme != "https" && !loopback(u) || u.Host == "":
			report([]any{"issuers", i, "url"}, "issuer url is %q; an https address is expected", issuer.URL)
		case seen[issuer.URL]:
			report([]any{"issuers", i, "url"}, "issuer %s stands there twice", issuer.URL)
		}
		seen[issuer.URL] = true
		switch {
		case issuer.Kubernetes && issuer.Audience != "":
			report([]any{"issuers", i, "audience"}, "a kubernetes issuer's tokens are asked for with any audience: leave audience out and ask for the url")
		case len(issuer.Audience) > 255 || strings.ContainsFunc(issuer.Audience, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }):
			report([]any{"issuers", i, "audience"}, "audience is %.80q; one name without spaces is expected, such as an application's id or api://countersign", issuer.Audience)
		}
		if issuer.Kubernetes && issuer.GroupsClaim != "" {
			report([]any{"issuers", i, "groupsClaim"}, "a kubernetes issuer's groups come from Kubernetes: leave groupsClaim out")
		}
		for key, prefix := range map[string]string{"usernamePrefix": issuer.UsernamePrefix, "groupsPrefix": issuer.GroupsPrefix} {
			if len(prefix) > 100 || strings.HasPrefix(prefix, "system:") || strings.ContainsFunc(prefix, func(r rune) bool { return !unicode.IsPrint(r) }) {
				report([]any{"issuers", i, key}, "%s is %q; a few characters that can be seen are expected, such as okta:, and not system:, which is for Kubernetes", key, prefix)
			}
		}
		positive(issuer.ClockSkew, maxClockSkew, "issuers", i, "clockSkew")
	}
	if len(c.Clusters) == 0 {
		report(nil, "clusters is missing: name at least one")
	}
	names := map[string]bool{}
	for i, cluster := range c.Clusters {
		if !name.MatchString(cluster.Name) {
			report([]any{"clusters", i, "name"}, "cluster name is %q; lower-case letters, digits, - and . are expected", cluster.Name)
		} else if names[cluster.Name] {
			report([]any{"clusters", i, "name"}, "cluster %s stands there twice", cluster.Name)
		}
		names[cluster.Name] = true
		if (cluster.Kubeconfig == "") == !cluster.InCluster {
			report([]any{"clusters", i}, "cluster %s needs either kubeconfig or inCluster: true", cluster.Name)
		}
		if cluster.ServiceAccount != "" && !account.MatchString(cluster.ServiceAccount) {
			report([]any{"clusters", i, "serviceAccount"}, "serviceAccount is %q; namespace/name is expected", cluster.ServiceAccount)
		}
		c.checkImpersonate(cluster, report, "clusters", i, "impersonate")
	}
	for set := range c.Approvers {
		if !name.MatchString(set) {
			report([]any{"approvers", set}, "approver set name is %q; lower-case letters, digits, - and . are expected", set)
		}
	}
	c.checkPeople(report)
	c.checkSlack(report)
	c.checkAudit(report)
	if n := c.Approvals.MaxPending; n < 0 || n > 10_000 {
		report([]any{"approvals", "maxPending"}, "maxPending is %d; from 1 to 10000 is expected", n)
	}
	positive(c.Approvals.Wait, maxWait, "approvals", "wait")
	positive(c.Approvals.Cooldown, 24*time.Hour, "approvals", "cooldown")
	positive(c.Approvals.GrantFor, maxGrantFor, "approvals", "grantFor")
	positive(&c.RequestTimeout, 10*time.Minute, "requestTimeout")
	if c.MaxStoreBytes < 0 {
		report([]any{"maxStoreBytes"}, "maxStoreBytes must not be negative")
	}
}

// checkCallers checks what is demanded of every caller.
func (c *Config) checkCallers(report func(at []any, format string, args ...any)) {
	for i, network := range c.TrustedProxies {
		if _, err := netip.ParsePrefix(network); err != nil {
			report([]any{"trustedProxies", i}, "%q is no network, such as 10.0.0.0/8 or 10.1.2.3/32", network)
		}
	}
	for key, s := range map[string]string{"read": c.Scopes.Read, "change": c.Scopes.Change} {
		if s != "" && !scope.MatchString(s) {
			report([]any{"scopes", key}, "scope %q is not one OAuth scope: it holds a space, a quote or a backslash", s)
		}
	}
	for key, n := range map[string]strictyaml.Int{"perPrincipal": c.Limits.PerPrincipal, "perAddress": c.Limits.PerAddress} {
		if n < 0 || n > maxRate {
			report([]any{"limits", key}, "%s is %d; from 1 to %d requests a second are expected", key, n, maxRate)
		}
	}
}

// The ids that Slack gives to users and user groups.
var (
	slackUser  = regexp.MustCompile(`^[UW][A-Z0-9]{2,20}$`)
	slackGroup = regexp.MustCompile(`^S[A-Z0-9]{2,20}$`)
	labelKey   = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// account is the namespace and the name of a service account.
var account = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)

func (c *Config) checkImpersonate(cluster Cluster, report func(at []any, format string, args ...any), at ...any) {
	m := cluster.Impersonate
	if m == nil {
		return
	}
	below := func(more ...any) []any { return append(slices.Clone(at), more...) }
	own := false
	others := map[string][]string{} // the prefixes of other issuers
	for _, issuer := range c.Issuers {
		switch {
		case m.ServiceAccountIssuer == "" || issuer.URL != m.ServiceAccountIssuer:
			others["usernamePrefix"] = append(others["usernamePrefix"], issuer.UsernamePrefix)
			others["groupsPrefix"] = append(others["groupsPrefix"], issuer.GroupsPrefix)
		case issuer.Kubernetes:
			own = true
		}
	}
	if m.ServiceAccountIssuer != "" && !own {
		report(below("serviceAccountIssuer"), "serviceAccountIssuer is %q; the url of one of issuers with kubernetes: true is expected", m.ServiceAccountIssuer)
	}
	for _, prefix := range []struct {
		key string
		is  *string
	}{{"usernamePrefix", m.UsernamePrefix}, {"groupsPrefix", m.GroupsPrefix}} {
		issuers := others[prefix.key]
		switch {
		case prefix.is == nil && slices.Contains(issuers, ""):
			report(at, `impersonate.%s is missing, such as "countersign:"; "" lets whoever chooses names at the issuer choose any in the cluster but system: ones`, prefix.key)
		case prefix.is != nil && strings.HasPrefix(strings.ToLower(*prefix.is), "system:"):
			report(below(prefix.key), "%s is %q; system: is Kubernetes' own", prefix.key, *prefix.is)
		}
		for i, one := range issuers {
			if slices.ContainsFunc(slices.Delete(slices.Clone(issuers), i, i+1), func(other string) bool { return strings.HasPrefix(one, other) }) {
				report(at, "with impersonate, each of several issuers needs a %s of its own, which begins no other: or one could name the users or groups of another", prefix.key)
				break
			}
		}
	}
	for i, extra := range m.Extra {
		if !slices.Contains([]string{"on-behalf-of", "client", "issuer"}, extra) || slices.Index(m.Extra, extra) != i {
			report(below("extra", i), "extra is %q; on-behalf-of, client and issuer are known, each once", extra)
		}
	}
}

func (c *Config) checkPeople(report func(at []any, format string, args ...any)) {
	ids := func(form *regexp.Regexp, what string, list []string, at ...any) {
		for i, id := range list {
			if !form.MatchString(id) {
				report(append(slices.Clone(at), i), "%q is not the id of %s, such as %s", id, what, map[*regexp.Regexp]string{slackUser: "U012AB3CD", slackGroup: "S012AB3CD"}[form])
			}
		}
	}
	for set, members := range c.Approvers {
		if len(members.Local)+len(members.Slack)+len(members.SlackGroups)+len(members.Emails) == 0 {
			report([]any{"approvers", set}, "approver set %s has nobody in it", set)
		}
		ids(slackUser, "a Slack user", members.Slack, "approvers", set, "slack")
		ids(slackGroup, "a Slack user group", members.SlackGroups, "approvers", set, "slackGroups")
		switch {
		case c.Slack == nil && len(members.Slack)+len(members.SlackGroups)+len(members.Emails) > 0:
			report([]any{"approvers", set}, "approver set %s has people of Slack, but slack is not configured", set)
		case c.Slack != nil && !c.Slack.MatchEmail && len(members.Emails) > 0:
			report([]any{"approvers", set, "emails"}, "emails count only with slack.matchEmail: true")
		}
	}
	owner := map[string]string{}
	for i, p := range c.People {
		for _, accounts := range []struct {
			key   string
			names []string
		}{{"local", p.Local}, {"slack", p.Slack}, {"principals", p.Principals}} {
			for j, account := range accounts.names {
				at, id := []any{"people", i, accounts.key, j}, accounts.key+" "+strings.ToLower(account)
				switch have, taken := owner[id]; {
				case account == "" || accounts.key == "local" && account == "*":
					report(at, "%q is no account of one person", account)
				case taken:
					report(at, "%s %s stands there already, as an account of %s: write all accounts of a person in one place", accounts.key, account, have)
				}
				owner[id] = p.Name
			}
		}
		if p.Name == "" || len(p.Local)+len(p.Slack)+len(p.Principals) < 2 {
			report([]any{"people", i}, "a person has a name and at least two accounts: local, slack or principals")
		}
		ids(slackUser, "a Slack user", p.Slack, "people", i, "slack")
	}
}

func (c *Config) checkSlack(report func(at []any, format string, args ...any)) {
	s := c.Slack
	if s == nil {
		return
	}
	if s.BotTokenFile == "" {
		report([]any{"slack"}, "slack.botTokenFile is missing: a file with the token of the app's bot, xoxb-...")
	}
	if (s.AppTokenFile == "") == (s.SigningSecretFile == "") {
		report([]any{"slack"}, "slack needs either appTokenFile (Socket Mode) or signingSecretFile (signed HTTP)")
	}
	if !approvals.SlackChannel.MatchString(s.Channel) {
		report([]any{"slack", "channel"}, "slack.channel is %q; the id of a channel is wanted, such as C012AB3CD: in Slack, click the channel's name; the id stands at the end of the tab About", s.Channel)
	}
	if s.ChannelLabel != "" && !labelKey.MatchString(s.ChannelLabel) {
		report([]any{"slack", "channelLabel"}, "slack.channelLabel is %q; the key of a label is expected, such as example.com/approvals", s.ChannelLabel)
	}
	if s.APIURL != "" {
		if u, err := url.Parse(s.APIURL); err != nil || u.Host == "" || u.Scheme != "https" && !loopback(u) || !strings.HasSuffix(u.Path, "/") {
			report([]any{"slack", "apiURL"}, "slack.apiURL is %q; an https address that ends with / is expected", s.APIURL)
		}
	}
}

func (c *Config) checkURL(report func(at []any, format string, args ...any)) {
	if c.URL == "" {
		report(nil, "url is missing: the address of the MCP endpoint, such as https://countersign.example.com/mcp")
		return
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		report([]any{"url"}, "url is %q; an https address is expected", c.URL)
	case strings.ContainsAny(u.Path, "{}"):
		report([]any{"url"}, "url is %q; its path is to be plain", c.URL)
	case u.Path == "" || strings.HasSuffix(u.Path, "/"):
		report([]any{"url"}, "url is %q; it needs a path without a slash at its end, such as /mcp", c.URL)
	case u.Scheme == "http" && !loopback(u):
		report([]any{"url"}, "url is %q; plain http is for this machine only: tokens would travel in the clear", c.URL)
	}
}

func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// complete fills in the defaults and makes paths absolute.
func (c *Config) complete(dir string) {
	absolute := func(paths ...*string) {
		for _, p := range paths {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
	}
	absolute(&c.Data, &c.Policy, &c.AdminSocket, &c.TLS.CertFile, &c.TLS.KeyFile, &c.Audit.EmergencyFile)
	for i := range c.Issuers {
		absolute(&c.Issuers[i].CAFile)
	}
	for i := range c.Clusters {
		absolute(&c.Clusters[i].Kubeconfig)
	}
	if s := c.Slack; s != nil {
		absolute(&s.BotTokenFile, &s.AppTokenFile, &s.SigningSecretFile)
		if s.APIURL == "" {
			s.APIURL = defaultSlackAPI
		}
	}
	if c.Audit.Anchors.File == "" {
		c.Audit.Anchors.File = filepath.Join(c.Data, "checkpoints")
	}
	if c.Audit.Anchors.File != NoFile {
		absolute(&c.Audit.Anchors.File)
	}
	if c.Approvals.MaxPending == 0 {
		c.Approvals.MaxPending = defaultMaxPending
	}
	if c.Limits.PerPrincipal == 0 {
		c.Limits.PerPrincipal = defaultPerPrincipal
	}
	if c.Limits.PerAddress == 0 {
		c.Limits.PerAddress = defaultPerAddress
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if c.AdminSocket == "" {
		c.AdminSocket = filepath.Join(c.Data, "admin.sock")
	}
	if c.Audit.EmergencyFile == "" {
		c.Audit.EmergencyFile = filepath.Join(c.Data, "emergency.jsonl")
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = defaultRequestTimeout
	}
	defaulted := func(d **time.Duration, value time.Duration) {
		if *d == nil {
			*d = &value
		}
	}
	for i := range c.Issuers {
		defaulted(&c.Issuers[i].ClockSkew, defaultClockSkew)
	}
	defaulted(&c.Audit.Anchors.Every, defaultAnchorEvery)
	defaulted(&c.Approvals.Wait, maxWait)
	defaulted(&c.Approvals.Cooldown, defaultCooldown)
	defaulted(&c.Approvals.GrantFor, defaultGrantFor)
}

// Store is the path of the store's file.
func (c *Config) Store() string { return filepath.Join(c.Data, "countersign.db") }
