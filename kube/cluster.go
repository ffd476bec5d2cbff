package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/klog/v2"

	"countersign/action"
	"countersign/audit"
	"countersign/gate"
	"countersign/tools"
)

// Config names one cluster and where the server's credential for it is.
type Config struct {
	Name string
	// Kubeconfig is a file; empty means the in-cluster credential.
	Kubeconfig string
	// Context is the kubeconfig's context; empty means its current one.
	Context string
	// ServiceAccount, namespace/name, is who acts. The credential then serves for
	// nothing but to ask for short-lived tokens of it.
	ServiceAccount string
	// Impersonate shows the principals to the cluster; nil shows it the server alone.
	Impersonate *Impersonate
	// Now tells when a token expires; time.Now where it is nil.
	Now func() time.Time
}

// Clusters are the clusters that the server governs. It implements gate.Cluster.
type Clusters struct {
	byName map[string]*cluster
}

type cluster struct {
	name   string
	config *rest.Config
	client *rest.RESTClient
	reads  *rest.RESTClient

	credential credential
	tokens     *minter // nil where the credential itself acts
	// impersonate is nil where the cluster is to see the server alone.
	impersonate *Impersonate
	probe       probe

	discovery discovery.CachedDiscoveryInterface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	shortcuts meta.RESTMapper
	// kinds is what was resolved since the cluster was last asked what it serves. It
	// is replaced and not emptied, so that what was resolved before does not come
	// back: [apiVersion, kind] -> action.Resource.
	kinds atomic.Pointer[sync.Map]

	mu sync.Mutex
	// refreshed and dropped are when a kind that is not known, and one that is
	// served no more, last made the server forget what the cluster serves.
	refreshed, dropped time.Time
}

// refreshEvery is how soon a kind that is not known may make the server ask
// the cluster again what it serves; a caller that invents kinds must not be
// able to cause more.
const refreshEvery = 10 * time.Second

// silence is for client-go, which writes to stderr by itself, cluster text included;
// its errors come back to whoever asked, and are told there.
var silence = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })

// New prepares the clients. It sends nothing: a cluster that is down now can
// be up when it is needed.
//
// timeout bounds each request for what a cluster serves; that of an Action is
// bounded by its context.
func New(configs []Config, userAgent string, timeout time.Duration) (*Clusters, error) {
	silence()
	c := &Clusters{byName: map[string]*cluster{}}
	for _, config := range configs {
		one, err := newCluster(config, userAgent, timeout)
		if err != nil {
			return nil, fmt.Errorf("preparing cluster %s: %w", config.Name, err)
		}
		c.byName[config.Name] = one
	}
	return c, nil
}

func newCluster(config Config, userAgent string, timeout time.Duration) (*cluster, error) {
	from, err := load(config)
	if err != nil {
		return nil, err
	}
	return connect(config, from, userAgent, timeout)
}

// connect makes the clients of a cluster.
func connect(config Config, from credential, userAgent string, timeout time.Duration) (*cluster, error) {
	restConfig := from.config
	restConfig.UserAgent = userAgent
	restConfig.QPS = -1 // policy limits callers; the API server limits us
	restConfig.WarningHandler = rest.NoWarnings{}
	restConfig = dynamic.ConfigFor(restConfig)
	restConfig.GroupVersion = &schema.GroupVersion{}
	if config.Impersonate != nil && config.ServiceAccount == "" && restConfig.Impersonate.UserName != "" {
		return nil, errAs
	}
	var tokens *minter
	var err error
	if config.ServiceAccount != "" {
		if tokens, err = newMinter(config.ServiceAccount, restConfig, config.Now); err != nil {
			return nil, err
		}
		restConfig = rest.AnonymousClientConfig(restConfig)
	}
	restConfig.Wrap(func(next http.RoundTripper) http.RoundTripper { return &sending{next, config.Impersonate != nil} })
	if tokens != nil { // outside of sending, which is to know what has left
		restConfig.Wrap(func(next http.RoundTripper) http.RoundTripper { return bearing{next, tokens} })
	}
	// One client, and so one pool of connections, for everything but reads.
	httpClient, err := httpClientFor(restConfig)
	if err != nil {
		return nil, err
	}
	client, err := rest.UnversionedRESTClientForConfigAndClient(restConfig, httpClient)
	if err != nil {
		return nil, err
	}
	// Reads have connections of their own that speak HTTP/1.1: the API server answers
	// a single request sooner over them. Changes stay with HTTP/2, where a server
	// that goes away says which requests it has not begun.
	readConfig := rest.CopyConfig(restConfig)
	readConfig.NextProtos = []string{"http/1.1"}
	readClient, err := httpClientFor(readConfig)
	if err != nil {
		return nil, err
	}
	reads, err := rest.UnversionedRESTClientForConfigAndClient(readConfig, readClient)
	if err != nil {
		return nil, err
	}
	bounded := *httpClient // the same connections, with a time limit
	bounded.Timeout = timeout
	bounded.Transport = asking{bounded.Transport}
	discoveryClient, err := discovery.NewDiscoveryClientForConfigAndClient(restConfig, &bounded)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(discoveryClient)
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(cached)
	c := &cluster{
		name: config.Name, config: restConfig, client: client, reads: reads, discovery: cached, mapper: mapper,
		credential: from, tokens: tokens, impersonate: config.Impersonate,
		shortcuts: restmapper.NewShortcutExpander(mapper, cached, nil),
	}
	c.kinds.Store(new(sync.Map))
	return c, nil
}

// forget makes the next call ask the cluster what it serves.
func (c *cluster) forget() {
	c.mapper.Reset()
	c.kinds.Store(new(sync.Map))
}

func (c *Clusters) get(name string) (*cluster, error) {
	one, ok := c.byName[name]
	if !ok {
		return nil, fmt.Errorf("there is no cluster %q", name)
	}
	return one, nil
}

// Warm asks every cluster what it serves, so that the first call need not.
func (c *Clusters) Warm(ctx context.Context) map[string]error {
	failed := map[string]error{}
	for name, one := range c.byName {
		if _, err := one.shortcuts.ResourceFor(schema.GroupVersionResource{Resource: "pods"}); err != nil {
			failed[name] = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

// How often a cluster is asked which one it is: one that has answered, and one that
// has not.
const (
	watchEvery = 10 * time.Minute
	watchAgain = 15 * time.Second
)

// Watch finds out which clusters the names stand for, and tells found, again and
// again until ctx ends. Where the server may not read that, found is told so.
func (c *Clusters) Watch(ctx context.Context, found func(audit.Cluster, error)) {
	var all sync.WaitGroup
	for _, one := range c.byName {
		all.Go(func() {
			for {
				uid, err := one.uid(ctx)
				wait := watchEvery
				var refused *gate.APIError
				switch {
				case err == nil, errors.As(err, &refused) && (refused.Code == http.StatusForbidden || refused.Code == http.StatusNotFound):
					found(audit.Cluster{Name: one.name, Server: one.host(), UID: uid}, err)
				default:
					wait = watchAgain
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	all.Wait()
}

// UID tells one cluster from every other, whatever names and addresses it has: it is
// that of its namespace kube-system.
func (c *Clusters) UID(ctx context.Context, clusterName string) (string, error) {
	one, err := c.get(clusterName)
	if err != nil {
		return "", err
	}
	return one.uid(ctx)
}

// uid asks in the server's own name, whoever calls.
func (c *cluster) uid(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(own(ctx), uidTimeout)
	defer cancel()
	data, err := c.reads.Get().AbsPath("/api/v1/namespaces/kube-system").Do(ctx).Raw()
	if err = fault(ctx, err); err != nil {
		return "", err
	}
	var namespace struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(data, &namespace); err != nil || namespace.Metadata.UID == "" {
		return "", errors.New("what answers is no API server: its namespace kube-system has no UID")
	}
	return namespace.Metadata.UID, nil
}

const uidTimeout = 10 * time.Second

// host is where the API server is, without what else a URL can hold.
func (c *cluster) host() string {
	if u, err := url.Parse(c.config.Host); err == nil && u.Host != "" {
		return u.Host
	}
	return c.config.Host
}

// Resolve implements tools.Resolver. What the cluster serves is kept in memory
// and asked again when a kind is not found.
func (c *Clusters) Resolve(ctx context.Context, clusterName, apiVersion, kind string) (action.Resource, error) {
	one, err := c.get(clusterName)
	if err != nil {
		return action.Resource{}, err
	}
	if !kindName.MatchString(kind) {
		if strings.ContainsAny(kind, ", ") {
			return action.Resource{}, tools.BadArgument("kind %.100q is not the name of one kind: give one kind a call", kind)
		}
		return action.Resource{}, tools.BadArgument("kind %.100q is not the name of a kind: %s", kind, howToFind)
	}
	key := [2]string{apiVersion, kind}
	if apiVersion == "" { // then case does not matter, see resolve
		key[1] = strings.ToLower(kind)
	}
	if known, ok := one.kinds.Load().Load(key); ok {
		return known.(action.Resource), nil
	}
	// The mapper knows no context and holds a lock while it asks.
	type answer struct {
		resource action.Resource
		err      error
	}
	done := make(chan answer, 1)
	go func() {
		kinds := one.kinds.Load()
		resource, err := one.resolve(apiVersion, kind)
		if meta.IsNoMatchError(err) && one.mayRefresh(&one.refreshed) {
			one.forget()
			kinds = one.kinds.Load()
			resource, err = one.resolve(apiVersion, kind)
		}
		if err == nil {
			kinds.Store(key, resource)
		}
		done <- answer{resource, err}
	}()
	var resource action.Resource
	select {
	case a := <-done:
		resource, err = a.resource, a.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if meta.IsNoMatchError(err) {
		name := strings.TrimSpace(apiVersion + " " + kind)
		if near := one.near(kind); len(near) > 0 {
			return resource, tools.BadArgument("cluster %s serves no kind %q; near it are %s; %s", clusterName, name, strings.Join(near, ", "), howToFind)
		}
		return resource, tools.BadArgument("cluster %s serves no kind %q: %s", clusterName, name, howToFind)
	}
	var argument *tools.ArgumentError
	if errors.As(err, &argument) {
		return resource, err
	}
	if err != nil {
		return resource, fmt.Errorf("asking cluster %s what it serves: %w", clusterName, apiError(err))
	}
	return resource, nil
}

const howToFind = "list_api_resources with match finds it"

// kindName is what may name a kind, with or without version and group.
var kindName = regexp.MustCompile(`^[A-Za-z][-A-Za-z0-9]*(\.[-A-Za-z0-9.]*)?$`)

func (c *cluster) mayRefresh(last *time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(*last) < refreshEvery {
		return false
	}
	*last = time.Now()
	return true
}

// events are served by two groups from one store. Rules and approvers see those
// of the core group, or a rule about one name could be escaped under the other.
var (
	events     = schema.GroupKind{Kind: "Event"}
	sameEvents = schema.GroupKind{Group: "events.k8s.io", Kind: "Event"}
)

// resolve finds the one resource and version by which a kind is known here: the
// version that the cluster prefers. Of one object each version shows other
// fields, so a rule about a field of one could be escaped through another, and
// the API server converts nothing without storing it.
func (c *cluster) resolve(apiVersion, kind string) (action.Resource, error) {
	var named schema.GroupKind
	var written *meta.RESTMapping
	if apiVersion != "" {
		version, err := schema.ParseGroupVersion(apiVersion)
		if err != nil {
			return action.Resource{}, &meta.NoKindMatchError{GroupKind: schema.GroupKind{Kind: kind}}
		}
		named = schema.GroupKind{Group: version.Group, Kind: kind}
		if written, err = c.mapper.RESTMapping(named, version.Version); err != nil {
			return action.Resource{}, err
		}
	} else {
		full, partial := schema.ParseResourceArg(strings.ToLower(kind))
		var gvk schema.GroupVersionKind
		var err error
		if full != nil {
			gvk, err = c.shortcuts.KindFor(*full)
		}
		if full == nil || err != nil {
			if gvk, err = c.shortcuts.KindFor(partial.WithVersion("")); err != nil {
				return action.Resource{}, err
			}
		}
		named = gvk.GroupKind()
	}
	known := named
	if known == sameEvents {
		known = events
	}
	mapping, err := c.mapper.RESTMapping(known)
	if err != nil {
		return action.Resource{}, err
	}
	switch {
	case written == nil:
	case known != named:
		return action.Resource{}, tools.BadArgument("%s %s: write it as v1 %s; both are one store, and rules and approvers see one form of each kind", kind, apiVersion, kind)
	case written.Resource.Version != mapping.Resource.Version:
		return action.Resource{}, tools.BadArgument("%s %s: write it as %s, the version that this cluster prefers; rules and approvers see one form of each kind",
			kind, apiVersion, mapping.GroupVersionKind.GroupVersion())
	}
	return action.Resource{
		Group: mapping.Resource.Group, Version: mapping.Resource.Version, Resource: mapping.Resource.Resource,
		Kind: mapping.GroupVersionKind.Kind, Namespaced: mapping.Scope.Name() == meta.RESTScopeNameNamespace,
	}, nil
}

// near finds served resources whose name is like the one that is not served.
func (c *cluster) near(kind string) []string {
	kind, _, _ = strings.Cut(strings.ToLower(kind), ".")
	_, lists, _ := c.discovery.ServerGroupsAndResources() // partial results will do
	var near []string
	for _, list := range lists {
		group, _, _ := strings.Cut(list.GroupVersion, "/")
		if !strings.Contains(list.GroupVersion, "/") {
			group = ""
		}
		for _, r := range list.APIResources {
			name := action.Resource{Group: group, Resource: r.Name}.GroupResource()
			if !strings.Contains(r.Name, "/") && alike(r.Name, kind) && !slices.Contains(near, name) {
				near = append(near, name)
			}
		}
	}
	return near[:min(len(near), 5)]
}

func alike(a, b string) bool {
	const prefix = 4
	return strings.Contains(a, b) || strings.Contains(b, strings.TrimSuffix(a, "s")) ||
		len(a) >= prefix && len(b) >= prefix && a[:prefix] == b[:prefix]
}
