package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"countersign/admin"
	"countersign/approvals"
	"countersign/approvals/slack"
	"countersign/audit"
	"countersign/configs"
	"countersign/gate"
	"countersign/identity"
	"countersign/kube"
	"countersign/mcp"
	"countersign/storage"
	"countersign/tools"
)

// tokenVariable holds the bearer token of the caller on stdio.
const tokenVariable = "COUNTERSIGN_TOKEN"

// stopAfter is how long a stopping server waits for what has started.
const stopAfter = 30 * time.Second

func serveCommand(s *settings) *cobra.Command {
	var stdio bool
	serve := &cobra.Command{
		Use:   "serve",
		Short: "Serve agents over MCP",
		Long: `Serve agents over MCP, as streamable HTTP on the configured address or, with
--stdio, to the one agent that started this process. On stdio the agent is who the
token in ` + tokenVariable + ` says.`,
		Example: "  countersign serve --config countersign.yaml\n  " + tokenVariable + "=... countersign serve --config countersign.yaml --stdio",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := s.load()
			if err != nil {
				return err
			}
			return serve(cmd, config, stdio)
		},
	}
	serve.Flags().BoolVar(&stdio, "stdio", false, "serve one agent on stdin and stdout")
	return serve
}

// gcPercent is GOGC where the environment has none. What stays of calls is little beside
// what each leaves behind: so a call at the limit of two cores costs a fifth less CPU, for
// about 20 MiB.
const gcPercent = 300

func serve(cmd *cobra.Command, config *configs.Config, stdio bool) (err error) {
	ctx := cmd.Context()
	if stdio && os.Getenv(tokenVariable) == "" {
		return errors.New(tokenVariable + " is not set: on stdio it says who the agent is; set it to a token for " + config.URL)
	}
	if stdio && config.Slack != nil && config.Slack.SigningSecretFile != "" {
		return errors.New("slack.signingSecretFile needs an address that Slack can reach, and with --stdio there is none: use slack.appTokenFile (Socket Mode)")
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	failures := &lastError{}
	log := slog.New(failures.watch(newLog(cmd.ErrOrStderr())))

	live, err := newLivePolicy(config, log)
	if err != nil {
		return err
	}
	clusters, err := kube.New(clusterConfigs(config), "countersign/"+version, config.RequestTimeout)
	if err != nil {
		return err
	}
	authenticator, err := identity.New(issuers(config), config.URL)
	if err != nil {
		return err
	}
	authenticator.Log = log
	for _, warning := range issuersAlike(config.Issuers) {
		log.Warn(warning)
	}
	// What else could keep the server from starting comes before anything that was
	// approved is taken up.
	var showing *certificate
	if config.TLS.CertFile != "" {
		if showing, err = newCertificate(config.TLS, log); err != nil {
			return err
		}
	}
	var listener net.Listener
	if !stdio {
		if listener, err = net.Listen("tcp", config.Listen); err != nil {
			return fmt.Errorf("listening: %w; give listen an address of this machine that no other program has", err)
		}
		defer listener.Close()
	}
	if err := os.MkdirAll(config.Data, 0o700); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	store, err := storage.Open(config.Store(), storage.Options{MaxBytes: int(config.MaxStoreBytes), Messenger: config.Slack != nil, Origin: origin(config.URL), Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	socket, err := admin.Listen(config.AdminSocket)
	if err != nil {
		return err
	}
	defer socket.Close()

	sealer, err := audit.NewSealer(config.Audit.Recipients)
	if err != nil {
		return fmt.Errorf("preparing audit.recipients: %w", err)
	}
	auditKey, err := store.PublicKey()
	if err != nil {
		return err
	}
	emergency := store.Emergency(config.Audit.EmergencyFile)
	if path := emergency.Waiting(); path != "" {
		log.Warn("outcomes wait in the emergency file to be imported into the audit log", "file", path, "command", "countersign audit import "+path)
	}

	node, _ := os.Hostname()
	people := directory(config)
	g := &gate.Gate{
		Store: store, Cluster: clusters, Policy: live.set.Load,
		Tools: tools.All(clusterNames(config)), Clusters: clusterNames(config), DigestKey: store.Key("digest"),
		Wait: *config.Approvals.Wait, Cooldown: *config.Approvals.Cooldown,
		MaxPending: int(config.Approvals.MaxPending), GrantFor: *config.Approvals.GrantFor, ChannelLabel: channelLabel(config), RequestTimeout: config.RequestTimeout,
		Sealer: sealer, Node: node, Log: log, Now: time.Now, Room: store.Room, Emergency: emergency.Append,
	}
	messenger, err := newSlack(config, g, store, people, log)
	if err != nil {
		return err
	}
	anchoring, err := newAnchors(config, store, clusters, g.Anchored, log)
	if err != nil {
		return err
	}
	if err := g.Start(); err != nil {
		return fmt.Errorf("taking up open operations: %w", err)
	}
	defer anchorLog(anchoring)() // ends after the last record, before the store is closed
	defer func() {
		stopping, cancel := context.WithTimeout(context.Background(), stopAfter)
		defer cancel()
		g.Stop(stopping)
	}()
	front := mcp.New(mcp.Config{
		Gate: g, Authenticator: authenticator, Version: version, Log: log,
		URL: config.URL, AuthorizationServers: loginURLs(config),
		AllowedHosts: config.AllowedHosts, AllowedOrigins: config.AllowedOrigins, TrustedProxies: trustedProxies(config),
		Scopes:       mcp.Scopes{Read: config.Scopes.Read, Change: config.Scopes.Change},
		PerPrincipal: int(config.Limits.PerPrincipal), PerAddress: int(config.Limits.PerAddress),
		Ready:      health(store, clusters, authenticator, len(config.Issuers)),
		SessionKey: store.Key("session"), Token: os.Getenv(tokenVariable),
	})
	os.Unsetenv(tokenVariable)
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { front.WatchSessions(watching) })
	watch.Go(func() { retain(watching, g, config.Audit.Retention.Payloads, config.Audit.Retention.Records, log) })
	watch.Go(func() { watchClusters(watching, clusters, g, log) })
	defer func() { // before the store is closed
		unwatch()
		watch.Wait()
	}()

	live.changed = g.PolicyChanged
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	go live.watch(ctx, hangup)

	adminServer := (&admin.Server{
		Gate: g, Store: store, Audit: store, Import: importInto(g, store), Log: log,
		Status: func() admin.Status {
			return admin.Status{
				Version: version, Policy: live.status(), Locks: g.Locks(), Slack: slackStatus(messenger),
				Clusters: clusterStatus(clusters.Status(ctx)), Issuers: issuersWithoutKeys(ctx, authenticator), Waiting: waiting(store), Log: logStatus(store, emergency), Anchors: anchorStatus(anchoring), LastError: failures.last(),
			}
		},
		People: people,
	}).HTTP()
	failed := make(chan error, 2)
	go func() { failed <- ignoreClosed(adminServer.Serve(socket)) }()
	defer adminServer.Close()

	if messenger != nil {
		telling, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			messenger.Run(telling)
		}()
		defer func() { // before the store is closed
			stop()
			<-done
		}()
	}

	go func() { // a cluster that is down must not keep the others waiting
		for name, err := range clusters.Warm(ctx) {
			log.Warn("cluster cannot be asked what it serves", "cluster", name, "err", audit.MaskText(err.Error()))
		}
	}()
	if stdio {
		return front.ServeStdio(ctx, cmd.InOrStdin(), cmd.OutOrStdout())
	}

	handler := front.Handler()
	if messenger != nil && config.Slack.SigningSecretFile != "" {
		mux := http.NewServeMux()
		mux.Handle(slack.Path, messenger.Handler(ctx))
		mux.Handle("/", handler)
		handler = mux
	}
	web := mcp.Web(handler)
	web.ErrorLog = slog.NewLogLogger(sparing{log.Handler(), rate.NewLimiter(1, 10)}, slog.LevelWarn)
	go func() {
		if showing != nil {
			web.TLSConfig = showing.config()
			failed <- ignoreClosed(web.ServeTLS(mcp.Listener(listener), "", ""))
		} else {
			failed <- ignoreClosed(web.Serve(mcp.Listener(listener)))
		}
	}()
	log.Info("serving", "address", listener.Addr().String(), "url", config.URL, "policy", live.set.Load().Digest(), "adminSocket", config.AdminSocket, "auditKey", auditKey)

	select {
	case err = <-failed:
	case <-ctx.Done():
		log.Info("stopping")
		g.Quit() // calls that wait for a person must not hold up the others
		stopping, cancel := context.WithTimeout(context.Background(), stopAfter)
		defer cancel()
		front.Drain(stopping) // while whoever comes now is told to come again
		if err = web.Shutdown(stopping); err != nil {
			err = fmt.Errorf("stopping: some calls were still running after %s: %w", stopAfter, err)
		}
	}
	return err
}

// origin names the log after the server's address: checkpoints have it without its
// scheme, and keys that sign notes without plus signs.
func origin(address string) string {
	_, rest, _ := strings.Cut(address, "://")
	return strings.ReplaceAll(rest, "+", "-")
}

// watchClusters keeps on record which clusters the names stand for.
func watchClusters(ctx context.Context, clusters *kube.Clusters, g *gate.Gate, log *slog.Logger) {
	clusters.Watch(ctx, func(c audit.Cluster, err error) {
		if g.ClusterSeen(c) && err != nil {
			log.Warn("the server may not read which cluster this is, so sessions in it cannot be replayed: let it get the namespace kube-system (docs/clusters.md)",
				"cluster", c.Name, "err", audit.MaskText(err.Error()))
		}
	})
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func clusterConfigs(config *configs.Config) []kube.Config {
	out := make([]kube.Config, len(config.Clusters))
	for i, c := range config.Clusters {
		out[i] = kube.Config{Name: c.Name, Kubeconfig: c.Kubeconfig, Context: c.Context, ServiceAccount: c.ServiceAccount, Impersonate: impersonate(c.Impersonate)}
	}
	return out
}

func clusterNames(config *configs.Config) []string {
	out := make([]string, len(config.Clusters))
	for i, c := range config.Clusters {
		out[i] = c.Name
	}
	return out
}

func issuers(config *configs.Config) []identity.Issuer {
	out := make([]identity.Issuer, len(config.Issuers))
	for i, c := range config.Issuers {
		out[i] = identity.Issuer{
			URL: c.URL, Audience: c.Audience, CAFile: c.CAFile, Algorithms: c.Algorithms, UsernameClaim: c.UsernameClaim,
			GroupsClaim: c.GroupsClaim, OnBehalfOfClaim: c.OnBehalfOfClaim, Kubernetes: c.Kubernetes,
			UsernamePrefix: c.UsernamePrefix, GroupsPrefix: c.GroupsPrefix, ClockSkew: *c.ClockSkew,
		}
	}
	return out
}

// issuersAlike warns of issuers that can name the same users or groups. A cluster's
// service accounts have names that nobody else's issuer can give.
func issuersAlike(all []configs.Issuer) (warnings []string) {
	for i, a := range all {
		for _, b := range all[i+1:] {
			users := a.UsernamePrefix == b.UsernamePrefix
			groups := a.GroupsPrefix == b.GroupsPrefix && (a.Kubernetes || a.GroupsClaim != "" && b.GroupsClaim != "")
			if a.Kubernetes == b.Kubernetes && (users || groups) {
				warnings = append(warnings, fmt.Sprintf("issuers %s and %s can give the same names to different callers: set usernamePrefix and groupsPrefix for one of them (docs/identity.md)", a.URL, b.URL))
			}
		}
	}
	return warnings
}

func trustedProxies(config *configs.Config) []netip.Prefix {
	out := make([]netip.Prefix, len(config.TrustedProxies))
	for i, network := range config.TrustedProxies {
		out[i] = netip.MustParsePrefix(network) // configs has looked
	}
	return out
}

// loginURLs are the issuers that clients are sent to. At a cluster's nobody can log in,
// and clients try the first one only; it is named when there is no other, because one
// has to be.
func loginURLs(config *configs.Config) []string {
	var people, clusters []string
	for _, c := range config.Issuers {
		if c.Kubernetes {
			clusters = append(clusters, c.URL)
		} else {
			people = append(people, c.URL)
		}
	}
	if people == nil {
		return clusters
	}
	return people
}

// directory is who is who, as the configuration says.
func directory(config *configs.Config) *approvals.Directory {
	d := &approvals.Directory{Sets: map[string][]string{}}
	add := func(to []string, prefix string, accounts []string) []string {
		for _, account := range accounts {
			to = append(to, prefix+account)
		}
		return to
	}
	for name, set := range config.Approvers {
		members := add(nil, "local:", set.Local)
		members = add(members, "slack:", set.Slack)
		members = add(members, "slackgroup:", set.SlackGroups)
		d.Sets[name] = add(members, "email:", set.Emails)
	}
	for _, p := range config.People {
		accounts := add(nil, "local:", p.Local)
		accounts = add(accounts, "slack:", p.Slack)
		d.People = append(d.People, add(accounts, "principal:", p.Principals))
	}
	return d
}

func channelLabel(config *configs.Config) string {
	if config.Slack == nil {
		return ""
	}
	return config.Slack.ChannelLabel
}
