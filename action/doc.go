// Package action holds the words that every other room uses: who asks
// (Principal), what one Kubernetes API request will be (Action), what one tool
// call will do (Plan), and what the API server says would change (Preview).
//
// It owns the canonical form of a Plan and the digests that consent is bound
// to. It knows no policy, no storage and no cluster client: it imports nothing
// but the standard library and apimachinery.
package action
