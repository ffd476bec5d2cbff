package anchors

import (
	"context"
	"fmt"
)

// What a ConfigMap with a checkpoint looks like, for those who read it.
const (
	// Label is on each, with the value LabelValue.
	Label      = "countersign/anchor"
	LabelValue = "checkpoint"
	// DataKey is where the note stands.
	DataKey = "checkpoint"
)

// ConfigMaps puts each checkpoint into an immutable ConfigMap of its own. create
// makes one whose name begins with prefix and ends as the API server likes.
//
// The name's end is not ours to choose on purpose. Whoever else may create in the
// namespace could take a name that is known beforehand; a server that may do
// nothing but create could not see what lies there, and would have to take it for
// its own. So a checkpoint that is put twice, after an answer that was lost or a
// restart, is there twice.
func ConfigMaps(cluster, namespace string, create func(ctx context.Context, prefix string, labels, data map[string]string) error) Anchor {
	return Anchor{
		Name: "configmap:" + cluster + "/" + namespace,
		Put: func(ctx context.Context, h Head) ([]byte, error) {
			prefix := fmt.Sprintf("countersign-checkpoint-%020d-", h.Size)
			return nil, create(ctx, prefix, map[string]string{Label: LabelValue}, map[string]string{DataKey: string(h.Note)})
		},
	}
}
