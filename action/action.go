package action

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Principal is the authenticated caller. Its values come from a validated
// token and from nothing that the caller can say of itself.
type Principal struct {
	// Issuer and Subject are the token's iss and sub; together they name the
	// caller for ever (OpenID Connect Core, section 2).
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
	// Username and Groups are what the issuer's claim mapping makes of the token.
	Username string   `json:"username"`
	Groups   []string `json:"groups"`
	// Client is the OAuth client (azp or client_id), where the token names one.
	Client string `json:"client,omitempty"`
	// OnBehalfOf is the person for whom an agent acts, where the token says so.
	OnBehalfOf string `json:"on_behalf_of,omitempty"`
}

// Agent is who calls, as people are told: where a token makes the person for whom
// an agent acts its user (RFC 8693), the client is the agent.
func (p Principal) Agent() string {
	if p.Client != "" && p.OnBehalfOf != "" && strings.HasSuffix(p.Username, p.OnBehalfOf) { // it may have a prefix
		return p.Client
	}
	return p.Username
}

// String is who calls and for whom.
func (p Principal) String() string {
	if p.OnBehalfOf == "" {
		return p.Agent()
	}
	return p.Agent() + ", on behalf of " + p.OnBehalfOf
}

// Key names the principal in maps and indexes. The two parts are separated by
// a byte that neither a URL nor a JWT subject holds.
func (p Principal) Key() string { return p.Issuer + "\n" + p.Subject }

// Kubernetes request verbs, as RBAC and the audit log of Kubernetes spell them.
const (
	Get    = "get"
	List   = "list"
	Create = "create"
	Update = "update"
	Patch  = "patch"
	Delete = "delete"
)

// Subresources that do something of their own.
const (
	Eviction = "eviction" // created upon a pod: deletes it, if its disruption budgets allow
	Exec     = "exec"     // created upon a pod: runs a command in it
)

// PatchType says what a patch's body means. The values are the media types of
// the Kubernetes API.
type PatchType string

// The patch types that a Plan may use.
const (
	MergePatch          PatchType = "application/merge-patch+json"
	StrategicMergePatch PatchType = "application/strategic-merge-patch+json"
	JSONPatch           PatchType = "application/json-patch+json"
	ApplyPatch          PatchType = "application/apply-patch+yaml"
)

// Short is the name that the log uses, empty for what is no patch.
func (t PatchType) Short() string {
	switch t {
	case MergePatch:
		return "merge"
	case StrategicMergePatch:
		return "strategic"
	case JSONPatch:
		return "json"
	case ApplyPatch:
		return "apply"
	}
	return string(t)
}

// Resource is a kind of object as one API server serves it.
type Resource struct {
	Group      string `json:"group"`
	Version    string `json:"version"`
	Resource   string `json:"resource"` // plural, lower case
	Kind       string `json:"kind,omitempty"`
	Namespaced bool   `json:"namespaced,omitempty"`
}

// GroupResource is the name that policy matches: "pods", "deployments.apps".
func (r Resource) GroupResource() string {
	if r.Group == "" {
		return r.Resource
	}
	return r.Resource + "." + r.Group
}

// Path is the name that the audit log uses: "v1/pods", "apps/v1/deployments".
func (r Resource) Path() string {
	if r.Group == "" {
		return r.Version + "/" + r.Resource
	}
	return r.Group + "/" + r.Version + "/" + r.Resource
}

// Action is one Kubernetes API request.
type Action struct {
	Cluster     string   `json:"cluster"`
	Verb        string   `json:"verb"`
	Resource    Resource `json:"resource"`
	Subresource string   `json:"subresource,omitempty"`
	Namespace   string   `json:"namespace,omitempty"`
	Name        string   `json:"name,omitempty"`
	// Body is the decoded JSON that is sent, nil for requests without one.
	Body    any     `json:"body,omitempty"`
	Options Options `json:"options,omitzero"`
}

// Options are the parameters of a request that change what it means.
type Options struct {
	PatchType     PatchType `json:"patchType,omitempty"`
	FieldManager  string    `json:"fieldManager,omitempty"`
	Force         bool      `json:"force,omitempty"`
	LabelSelector string    `json:"labelSelector,omitempty"`
	FieldSelector string    `json:"fieldSelector,omitempty"`
	Limit         int64     `json:"limit,omitempty"`
	Continue      string    `json:"continue,omitempty"`
	// Table asks for the server-side table without objects (meta.k8s.io/v1 Table).
	Table bool `json:"table,omitempty"`
	// Fields are those of the objects that are shown, as JSONPath; none shows all.
	Fields []string `json:"fields,omitempty"`
	// PropagationPolicy, GracePeriodSeconds: see metav1.DeleteOptions.
	PropagationPolicy  string `json:"propagationPolicy,omitempty"`
	GracePeriodSeconds *int64 `json:"gracePeriodSeconds,omitempty"`
	// Container, Previous, TailLines, SinceSeconds, Timestamps: see corev1.PodLogOptions.
	Container    string `json:"container,omitempty"`
	Previous     bool   `json:"previous,omitempty"`
	TailLines    int64  `json:"tailLines,omitempty"`
	SinceSeconds int64  `json:"sinceSeconds,omitempty"`
	Timestamps   bool   `json:"timestamps,omitempty"`
	// Grep is a regular expression: of a log, only lines that match it are shown.
	Grep string `json:"grep,omitempty"`
	// Command is run as it is, argument by argument, for at most TimeoutSeconds.
	Command        []string `json:"command,omitempty"`
	TimeoutSeconds int64    `json:"timeoutSeconds,omitempty"`
	// TailBytes is how much of the end of the answer is kept, whatever comes before it.
	TailBytes int64 `json:"tailBytes,omitempty"`
}

// ReadOnly reports whether the request cannot change the cluster.
func (a Action) ReadOnly() bool { return readOnly(a.Verb) }

func readOnly(verb string) bool { return verb == Get || verb == List }

// Removes reports whether the request takes the object away.
func (a Action) Removes() bool { return a.Verb == Delete || a.Subresource == Eviction }

// Verbs lists every verb that the API server may authorize the request under.
// A server-side apply is a patch that creates what is missing, so it is both
// (Kubernetes, Server-Side Apply, "API access").
func (a Action) Verbs() []string {
	if a.Options.PatchType == ApplyPatch {
		return []string{Create, Patch}
	}
	return []string{a.Verb}
}

// String names the action as a person would: "patch deployments.apps/scale shop/web".
func (a Action) String() string {
	var b strings.Builder
	b.WriteString(a.Verb)
	if a.Options.PatchType == ApplyPatch {
		b.Reset()
		b.WriteString("apply")
	}
	b.WriteString(" " + a.Resource.GroupResource())
	if a.Subresource != "" {
		b.WriteString("/" + a.Subresource)
	}
	switch {
	case a.Namespace != "" && a.Name != "":
		b.WriteString(" " + a.Namespace + "/" + quoted(a.Name))
	case a.Namespace != "":
		b.WriteString(" in namespace " + a.Namespace)
	case a.Name != "":
		b.WriteString(" " + quoted(a.Name))
	}
	return b.String()
}

var ordinary = regexp.MustCompile(`^[-A-Za-z0-9:._]+$`)

// quoted puts a name in quotes that could pass for more than a name: some
// kinds, such as those of RBAC, take spaces and commas.
func quoted(name string) string {
	if ordinary.MatchString(name) {
		return name
	}
	return strconv.Quote(name)
}

// Scope is what a tool may do at most, known before any argument is: the verbs
// and the kind of object. Every Action of a tool's Plans lies within one of
// the tool's Scopes; MCP hints and the first policy check are made from them.
type Scope struct {
	// Verbs are all those of each request together, as Action.Verbs has them:
	// an apply is create and patch. Alternatives are Scopes of their own.
	Verbs []string
	// Resource is a GroupResource, empty for any.
	Resource string
	// Subresource is exact: empty means the object itself.
	Subresource string
}

// Covers reports whether the action lies within the scope.
func (s Scope) Covers(a Action) bool {
	if s.Subresource != a.Subresource || s.Resource != "" && s.Resource != a.Resource.GroupResource() {
		return false
	}
	verbs := a.Verbs()
	return len(verbs) == len(s.Verbs) && !slices.ContainsFunc(verbs, func(verb string) bool { return !slices.Contains(s.Verbs, verb) })
}

// ReadOnly reports whether nothing within the scope can change the cluster.
func (s Scope) ReadOnly() bool {
	for _, verb := range s.Verbs {
		if !readOnly(verb) {
			return false
		}
	}
	return true
}
