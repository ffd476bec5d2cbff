package configs

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

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
	// Approvals says how questions to people behave.
	Approvals Approvals `yaml:"approvals"`
	// RequestTimeout bounds one request to an API server; 30s when absent.
	RequestTimeout time.Duration `yaml:"requestTimeout"`
	// MaxStoreBytes is the size at which the store takes no more; 0 is no limit.
	MaxStoreBytes strictyaml.Int `yaml:"maxStoreBytes"`
}

// TLS names a certificate and its key, both PEM files.
type TLS struct {
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
}

// Issuer is one OpenID Connect issuer.
type Issuer struct {
	// URL is the issuer exactly as its tokens' iss says it.
	URL string `yaml:"url"`
	// CAFile holds the certificates to trust for it; the system's when absent.
	CAFile string `yaml:"caFile"`
	// Algorithms are the accepted signature algorithms; RS256 and ES256 when absent.
	Algorithms []string `yaml:"algorithms"`
	// UsernameClaim is the claim that becomes the user name; sub when absent.
	UsernameClaim string `yaml:"usernameClaim"`
	// GroupsClaim is the claim that becomes the groups; no groups when absent.
	GroupsClaim string `yaml:"groupsClaim"`
	// OnBehalfOfClaim says for whom an agent acts; act (RFC 8693) when absent.
	OnBehalfOfClaim string `yaml:"onBehalfOfClaim"`
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
}

// Approvers is one approver set.
type Approvers struct {
	// Local are user names on this machine, as the kernel reports them at the
	// other end of the admin socket; "*" is everybody whom the socket lets in,
	// which is the user that the server runs as, and root.
	Local []string `yaml:"local"`
}

// Approvals says how questions to people behave.
type Approvals struct {
	// Wait is how long a call waits for a person before it answers
	// pending_approval; 45s when absent, which is also the most.
	Wait *time.Duration `yaml:"wait"`
	// Cooldown is how long after a rejection the same call is refused; 5m when absent.
	Cooldown *time.Duration `yaml:"cooldown"`
}

// Defaults, in one place.
const (
	defaultListen         = "127.0.0.1:8080"
	maxWait               = 45 * time.Second
	defaultCooldown       = 5 * time.Minute
	defaultRequestTimeout = 30 * time.Second
)

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
	if c.Data == "" {
		report(nil, "data is missing: the folder for the store")
	}
	if c.Policy == "" {
		report(nil, "policy is missing: the folder of the policy files")
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
		if issuer.Kubernetes && issuer.GroupsClaim != "" {
			report([]any{"issuers", i, "groupsClaim"}, "a kubernetes issuer's groups come from Kubernetes: leave groupsClaim out")
		}
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
	}
	for set := range c.Approvers {
		if !name.MatchString(set) {
			report([]any{"approvers", set}, "approver set name is %q; lower-case letters, digits, - and . are expected", set)
		}
	}
	positive := func(d *time.Duration, most time.Duration, at ...any) {
		if d != nil && (*d < 0 || most > 0 && *d > most) {
			report(at, "%v is %s; from 0s to %s is expected", at[len(at)-1], d, most)
		}
	}
	positive(c.Approvals.Wait, maxWait, "approvals", "wait")
	positive(c.Approvals.Cooldown, 24*time.Hour, "approvals", "cooldown")
	positive(&c.RequestTimeout, 10*time.Minute, "requestTimeout")
	if c.MaxStoreBytes < 0 {
		report([]any{"maxStoreBytes"}, "maxStoreBytes must not be negative")
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
	absolute(&c.Data, &c.Policy, &c.AdminSocket, &c.TLS.CertFile, &c.TLS.KeyFile)
	for i := range c.Issuers {
		absolute(&c.Issuers[i].CAFile)
	}
	for i := range c.Clusters {
		absolute(&c.Clusters[i].Kubeconfig)
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if c.AdminSocket == "" {
		c.AdminSocket = filepath.Join(c.Data, "admin.sock")
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = defaultRequestTimeout
	}
	defaulted := func(d **time.Duration, value time.Duration) {
		if *d == nil {
			*d = &value
		}
	}
	defaulted(&c.Approvals.Wait, maxWait)
	defaulted(&c.Approvals.Cooldown, defaultCooldown)
}

// Store is the path of the store's file.
func (c *Config) Store() string { return filepath.Join(c.Data, "countersign.db") }
