package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"countersign/admin"
	"countersign/approvals"
	"countersign/audit"
	"countersign/audit/anchors"
	"countersign/configs"
	"countersign/kube"
	"countersign/storage"
)

// lastAnchoring bounds how long a stopping server tries to anchor its last
// checkpoint.
const lastAnchoring = 5 * time.Second

// newAnchors prepares what anchors the log, as the configuration says. It contacts nobody.
func newAnchors(config *configs.Config, store *storage.Store, clusters *kube.Clusters, record func(audit.Anchored) error, log *slog.Logger) (*anchors.Loop, error) {
	verifier, err := store.Verifier()
	if err != nil {
		return nil, fmt.Errorf("reading the log's public key: %w", err)
	}
	loop := &anchors.Loop{Source: store, Verifier: verifier, Every: *config.Audit.Anchors.Every, Record: record, Log: log, Now: time.Now}
	for _, w := range config.Audit.Anchors.Witnesses {
		witness, err := anchors.Witness(w.URL, w.Key)
		if err != nil {
			return nil, fmt.Errorf("preparing audit.anchors.witnesses: %w", err)
		}
		loop.Witnesses = append(loop.Witnesses, witness)
	}
	if m := config.Audit.Anchors.ConfigMap; m != nil {
		loop.Places = append(loop.Places, anchors.ConfigMaps(m.Cluster, m.Namespace, func(ctx context.Context, prefix string, labels, data map[string]string) error {
			may, err := clusters.MayErase(ctx, m.Cluster, m.Namespace)
			switch {
			case err != nil:
				return err
			case len(may) > 0: // looked at each time: roles change
				return fmt.Errorf("this server's credential for cluster %s may %s: what it could take away itself proves nothing, so nothing was put there; let it create configmaps in namespace %s and nothing else, as docs/audit.md shows",
					m.Cluster, strings.Join(may, ", "), m.Namespace)
			}
			return clusters.CreateImmutable(ctx, m.Cluster, m.Namespace, prefix, labels, data)
		}))
	}
	if path := config.AnchorFile(); path != "" {
		loop.Places = append(loop.Places, anchors.File(path, verifier))
	}
	return loop, nil
}

// anchorLog anchors the log until the returned function is called, which anchors it
// once more: after the last record, and before the store is closed.
func anchorLog(loop *anchors.Loop) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		loop.Run(ctx)
	}()
	return func() {
		last, end := context.WithTimeout(context.Background(), lastAnchoring)
		defer end()
		cancel()
		<-done
		loop.Turn(last)
	}
}

func anchorStatus(loop *anchors.Loop) []admin.AnchorStatus {
	var out []admin.AnchorStatus
	for _, s := range loop.Status() {
		out = append(out, admin.AnchorStatus(s))
	}
	return out
}

func showAnchors(w io.Writer, all []admin.AnchorStatus) {
	for _, a := range all {
		how := "nothing yet"
		if a.Size > 0 {
			how = fmt.Sprintf("%d records at %s", a.Size, a.Time.UTC().Format(time.RFC3339))
		}
		fmt.Fprintf(w, "Anchored\t%s: %s\n", approvals.Visible(a.Name), how)
		if a.Error != "" {
			fmt.Fprintf(w, "\terror at %s: %s\n", a.ErrorTime.UTC().Format(time.RFC3339), approvals.Visible(a.Error))
		}
	}
}
