// What the C functions do with objects of other generators.
#include <doctest/doctest.h>

#include "capi/handles.h"
#include "fake_backend.h"
#include "ort_toy.h"

using namespace fopru;

namespace {

std::shared_ptr<Worker> worker_of(const std::shared_ptr<const Bundle>& bundle, bool device) {
    return std::make_shared<Worker>(bundle, GeneratorOptions{}, std::make_unique<fake::FakeBackend>(device));
}

}  // namespace

TEST_CASE("visual tokens go to another generator from host to host alone") {
    const auto bundle = Bundle::open(toy::frozen("bundle_v3"), false);
    fopru_request request = fopru_request_default();
    request.prompt = "?";
    for (const bool from : {false, true}) {
        const auto maker = worker_of(bundle, from);
        const fopru_encoded encoded{maker, {}, {}};
        CHECK_NOTHROW(given_request(*maker, &request, &encoded));
        for (const bool to : {false, true}) {
            const auto other = worker_of(bundle, to);
            if (from || to) {
                CHECK_THROWS_AS(given_request(*other, &request, &encoded), RequestError);
            } else {
                CHECK_NOTHROW(given_request(*other, &request, &encoded));
            }
        }
    }
}

TEST_CASE("visual tokens of another opening of the bundle are refused") {
    const std::string path = toy::frozen("bundle_v3");
    const fopru_encoded encoded{worker_of(Bundle::open(path, false), false), {}, {}};
    fopru_request request = fopru_request_default();
    request.prompt = "?";
    const auto other = worker_of(Bundle::open(path, false), false);
    CHECK_THROWS_AS(given_request(*other, &request, &encoded), RequestError);
}
